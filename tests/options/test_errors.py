"""A parser's many lines become the one that says what is wrong and what was meant."""

from abc import ABC, abstractmethod

import lightning as L
import pytest
from jsonargparse import ArgumentParser

from klqlit.models.critic import Critic
from klqlit.options.errors import explain


class Unfinished(ABC):
    """A class that no parser can build."""

    @abstractmethod
    def targets(self): ...

    @abstractmethod
    def loss(self): ...


def explained(kind, value, name="option"):
    """What becomes of the message that a parser has for a value."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument(f"--{name}", type=kind)
    with pytest.raises(Exception, match=name) as refused:
        parser.parse_args([f"--{name}={value}"])
    return explain(str(refused.value))


def test_several_missing_options_are_named_as_they_are_written():
    assert explain("the following arguments are required: b, judge") == "these options are required: --b, --judge"


def test_an_option_of_a_class_is_named_as_it_was_written():
    message = 'Parser key "model":\n  Errors:\n    - unrecognized arguments: --optimization.lr=-0.1'
    assert explain(message) == (
        "unrecognized arguments: --model.optimization.lr=-0.1; it belongs to klqlit.KLQ or klqlit.PPO: "
        "name the class as model.class_path"
    )


def test_an_option_without_its_class_names_the_classes():
    """A class that is not named is the base of all, which takes no option."""
    assert explained(L.LightningModule | None, '{"tau": 0.3}', name="model").endswith(
        "Option 'tau' is not accepted; it belongs to klqlit.KLQ or klqlit.PPO: name the class as model.class_path"
    )
    assert "Option 'tau' is not accepted; `--print_config`" in explained(L.LightningModule, '{"tau": 0.3}')


def test_an_abstract_class_of_the_package_names_those_one_can_have():
    assert explained(Critic, "klqlit.models.critic.Critic").endswith(
        ".Critic is abstract: name a class of its kind as class_path, such as klqlit.NoCritic or klqlit.SeparateCritic "
        "or klqlit.SharedCritic"
    )


def test_what_lists_the_options_can_be_said():
    message = "Parser key \"judge\":\n  Option 'foo' is not accepted"
    assert explain(message, listing="`--judge.help X`").endswith("; `--judge.help X` lists the options")


def test_what_an_abstract_class_lacks():
    path = f"{__name__}.Unfinished"
    assert explained(Unfinished, path) == f"option: {path} is abstract: it does not define loss, targets"


def test_a_misspelt_class_gets_the_nearest_name_of_its_module():
    path = f"{__name__}.Unfinishd"
    assert explained(Unfinished, path).endswith(f"; did you mean '{__name__}.Unfinished'?")
    assert explained(Unfinished, f"{__name__}.Something").endswith("has no attribute 'Something'")


def test_alternatives_come_in_one_list_with_the_value():
    assert explained(int | None, "two") == "option: expected an int, got 'two'"
    assert explained(int | float, "two") == "option: expected an int or a float, got 'two'"
