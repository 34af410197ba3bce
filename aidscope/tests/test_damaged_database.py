"""A restored database that is not its source is refused, and the difference is named.

`damage.sql` holds what is done to a copy of a healthy restored database, each below a
line that the drill must say, among the first eight about its object; `...` stands for
any text. A copy takes damages that have no object in common: no one hides another.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

from aidscope.tests.in_process import Made, differences_after, drill, made
from aidscope.tests.support import Case, Row, below_comment

# -- Views, and their rules -----------
SECTION = re.compile(r"^-- ([^-\n]+) --+\n", re.MULTILINE)
# -- > expected  index extra.value_label
CASE = re.compile(r"^-- > (.+)\n((?:(?!--).*\n)+)", re.MULTILINE)
TEXT = Path(__file__).with_name("damage.sql").read_text()
_, *PARTS = SECTION.split(TEXT)
SECTIONS = dict(zip(PARTS[::2], PARTS[1::2], strict=True))
# expected  table extra.value: 1 rows
THING = re.compile(r"(?:expected|found) +([^:]+)")
OBJECT = re.compile(
    r"\b(?:(?:backup_drill|extra|odd|public|spare)\.\S[\w+]*|(?:citext|news|spare)\b)"
)


@dataclass(frozen=True)
class Damage(Row):
    """SQL, and the sentence that is said of it: `nothing` of what is no damage."""

    sentence: str
    copy: tuple[tuple[str, ...], int]  # of the restored database, and its sections


def thing_of(sentence: str) -> str:
    """What a difference is about; `nothing` is about nothing."""
    found = THING.match(sentence)
    return found[1] if found else ""


def objects_of(sentence: str, sql: str) -> set[str]:
    """What the sentence is about, and all that either names with its schema."""
    return {thing_of(sentence), *OBJECT.findall(f"{sentence}\n{sql}")} - {""}


@cache
def damages(*sections: str) -> list[Damage]:
    """The cases of sections of the file, each in the first copy that it fits into."""
    found: list[Damage] = []
    taken: list[set[str]] = []  # what is named in each copy
    for sentence, sql in CASE.findall("".join(map(SECTIONS.get, sections))):
        objects = objects_of(sentence, sql)
        taken.append(set())
        number = next(n for n, names in enumerate(taken) if not names & objects)
        taken[number] |= objects
        found.append(Damage(sql, sentence, (sections, number)))
    return found


@cache
def said_of(
    copy: tuple[tuple[str, ...], int], with_facts: bool, with_definitions: bool
) -> list[str]:
    """The differences of a copy after all its damages."""
    sections, _ = copy
    sql = "".join(damage.words for damage in damages(*sections) if damage.copy == copy)
    return differences_after(sql, with_facts, with_definitions)


class DamagedDatabaseTests(Case):
    """Whatever differs is named; only what a section is about is read again."""

    with_facts = True
    with_definitions = True

    def judge(self, row: Damage) -> None:
        """The sentence is said, or nothing of what is no damage."""
        said = said_of(row.copy, self.with_facts, self.with_definitions)
        if row.sentence == "nothing":
            self.assertEqual(said, [])
            return
        pattern = ".*".join(map(re.escape, row.sentence.split("...")))
        about = [line for line in said if thing_of(line) == thing_of(row.sentence)]
        if not any(re.fullmatch(pattern, line) for line in about[:8]):
            self.fail("\n".join([f"not said: {row.sentence}", *said]))


FACTS = ("Values", "Rows", "Triggers of constraints", "Large objects")
DEFINITIONS = (
    "Columns",
    "Constraints",
    "Indexes",
    "Functions",
    "Triggers",
    "Types",
    "Owners, grants and policies",
    "Other objects",
)
BOTH = ("Sequences", "Views, materialized views and rules")


class FactsTests(DamagedDatabaseTests, table=damages(*FACTS)):
    """Rows, their values, and other facts."""

    with_definitions = False


class DefinitionsTests(DamagedDatabaseTests, table=damages(*DEFINITIONS)):
    """What is defined, with its owners and rights."""

    with_facts = False


class SequencesAndViewsTests(DamagedDatabaseTests, table=damages(*BOTH)):
    """Sequences with their values, and views with their rows and rules."""


class NoDamageTests(DamagedDatabaseTests, table=damages("No damage")):
    """What is no damage."""


class FileTests(Case):
    """The file of the damages is read whole."""

    def test_every_case_is_read(self) -> None:
        """Each case of the file is a test."""
        classes = DamagedDatabaseTests.__subclasses__()
        names = [name for each in classes for name in vars(each) if name[:5] == "test_"]
        self.assertEqual(len(names), TEXT.count("-- > "))


class HashTests(Case):
    """Nobody can guess a row or a password from a hash that is shown."""

    def test_another_run_has_other_hashes(self) -> None:
        """The same database has none of them there."""
        hashes = hashes_of(made())
        self.assertGreater(len(hashes), 100)
        with patch.object(drill, "SALT", "another"):
            self.assertEqual(hashes & hashes_of(made()), set())


def hashes_of(made: Made) -> set[str]:
    """The hashes in the facts and in the definitions."""
    contents = drill.contents_from(made.facts, made.definitions)
    facts = contents.facts | contents.definitions
    return {text for _, text in facts if " hash " in text}


class NamesakesTests(Case):
    """Operators of one name have one comment, but each has its owner."""

    def test_owner_of_one(self) -> None:
        """It is seen if one of three gets another owner, or two exchange theirs."""
        before = operators_of("anna", "ben", "ben")
        self.assertNotEqual(before, operators_of("anna", "anna", "ben"))
        self.assertNotEqual(before, operators_of("ben", "anna", "ben"))


def operators_of(*owners: str) -> set[drill.Fact]:
    """The definitions of operators with these owners."""
    script = ""
    for number, owner in enumerate(owners):
        sql = f"CREATE OPERATOR public.=== ({number});\n\n\n"
        script += below_comment(sql, "OPERATOR", "===", owner)
    return drill.definitions_in(script)
