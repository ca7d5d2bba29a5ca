"""One page that shows what runs did and how they compare."""
