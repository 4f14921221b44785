"""What happens to a row for what a reader would see in its text, as settings."""

from typing import Any, Literal

from pydantic import model_validator

from clues.config.base import Settings

Fate = Literal["set_aside", "flag", "off"]
FATES = ("set_aside", "flag", "off")


class FindingsSettings(Settings):
    """What happens to a row for what its text shows, by kind; a word instead holds for all kinds.

    `set_aside`: a row of which the rule is sure is not kept, under the finding's own name, whatever
    it scores; of which it is not, the row is flagged. `flag`: it is named and counted. `off`: nobody
    looks. A single word `set_aside` leaves `personal_data` at `flag`, which no rule is ever sure of.

    Attributes:
        duplicate: the same question and answer stand in an earlier row.
        near_duplicate: nearly the same do.
        html: remains of HTML.
        boilerplate: text of a web page's frame.
        mojibake: letters broken by a wrong encoding.
        refusal: the answer refuses, as an assistant does.
        prompt_repeated: the answer repeats its question.
        cut: the answer ends in the middle of a sentence, where checked rows end with one.
        language: another language than that of checked rows and of the question.
        near_empty: the answer says next to nothing.
        personal_data: what may be personal data; a flag at most.
    """

    duplicate: Fate = "off"
    near_duplicate: Fate = "off"
    html: Fate = "off"
    boilerplate: Fate = "off"
    mojibake: Fate = "off"
    refusal: Fate = "off"
    prompt_repeated: Fate = "off"
    cut: Fate = "off"
    language: Fate = "off"
    near_empty: Fate = "off"
    personal_data: Literal["flag", "off"] = "off"

    @model_validator(mode="before")
    @classmethod
    def _one_word(cls, value: Any) -> Any:
        """Accept one fate for all; YAML reads a bare `off` as false."""
        if isinstance(value, dict):
            return {name: "off" if fate is False else fate for name, fate in value.items()}
        fate = "off" if value is False else value
        if isinstance(fate, str) and fate in FATES:
            least = "flag" if fate == "set_aside" else fate
            return {name: least if name == "personal_data" else fate for name in cls.model_fields}
        return value

    @property
    def looked_for(self) -> tuple[str, ...]:
        """The kinds that are not off."""
        return tuple(name for name, fate in self if fate != "off")

    @property
    def setting_aside(self) -> tuple[str, ...]:
        """The kinds for which a row is set aside."""
        return tuple(name for name, fate in self if fate == "set_aside")
