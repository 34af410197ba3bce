"""A restored database that is not its source is refused, and the difference is named.

`damage.sql` holds what is done to a copy of a healthy restored database, each below a
line that the drill must say, among its first eight. There, `...` stands for any text.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from aidscope.tests.in_process import differences_after
from aidscope.tests.support import Case, Row

# -- Views, and their rules -----------
SECTION = re.compile(r"^-- ([^-\n]+) --+\n", re.MULTILINE)
# -- > expected  index extra.value_label
CASE = re.compile(r"^-- > (.+)\n((?:(?!--).*\n)+)", re.MULTILINE)
TEXT = Path(__file__).with_name("damage.sql").read_text()
_, *PARTS = SECTION.split(TEXT)
SECTIONS = dict(zip(PARTS[::2], PARTS[1::2], strict=True))


@dataclass(frozen=True)
class Damage(Row):
    """SQL, and the sentence that is said of it: `nothing` of what is no damage."""

    sentence: str


def damages(section: str) -> list[Damage]:
    """The cases of a section of the file."""
    return [Damage(sql, sentence) for sentence, sql in CASE.findall(SECTIONS[section])]


class DamagedDatabaseTests(Case):
    """Whatever differs is named; only what a section is about is read again."""

    with_facts = True
    with_definitions = True

    def judge(self, row: Damage) -> None:
        """The sentence is said, or nothing of what is no damage."""
        said = differences_after(row.words, self.with_facts, self.with_definitions)
        if row.sentence == "nothing":
            self.assertEqual(said, [])
            return
        pattern = ".*".join(map(re.escape, row.sentence.split("...")))
        if not any(re.fullmatch(pattern, line) for line in said[:8]):
            self.fail("\n".join([f"not said: {row.sentence}", *said[:10]]))


class ValuesTests(DamagedDatabaseTests, table=damages("Values")):
    """Values of rows."""

    with_definitions = False


class RowsTests(DamagedDatabaseTests, table=damages("Rows")):
    """Rows that are there or not."""

    with_definitions = False


class SequencesTests(DamagedDatabaseTests, table=damages("Sequences")):
    """Sequences and their values."""


class ColumnsTests(DamagedDatabaseTests, table=damages("Columns")):
    """Columns."""

    with_facts = False


class ConstraintsTests(DamagedDatabaseTests, table=damages("Constraints")):
    """Constraints."""

    with_facts = False


class ConstraintTriggersTests(
    DamagedDatabaseTests, table=damages("Triggers of constraints")
):
    """Triggers of constraints."""

    with_definitions = False


class IndexesTests(DamagedDatabaseTests, table=damages("Indexes")):
    """Indexes."""

    with_facts = False


class ViewsTests(
    DamagedDatabaseTests, table=damages("Views, materialized views and rules")
):
    """Views, materialized views and rules."""


class FunctionsTests(DamagedDatabaseTests, table=damages("Functions")):
    """Functions."""

    with_facts = False


class TriggersTests(DamagedDatabaseTests, table=damages("Triggers")):
    """Triggers."""

    with_facts = False


class TypesTests(DamagedDatabaseTests, table=damages("Types")):
    """Types."""

    with_facts = False


class RightsTests(DamagedDatabaseTests, table=damages("Owners, grants and policies")):
    """Owners, grants and policies."""

    with_facts = False


class OtherObjectsTests(DamagedDatabaseTests, table=damages("Other objects")):
    """Other objects."""

    with_facts = False


class LargeObjectsTests(DamagedDatabaseTests, table=damages("Large objects")):
    """Large objects."""

    with_definitions = False


class NoDamageTests(DamagedDatabaseTests, table=damages("No damage")):
    """What is no damage."""


class FileTests(Case):
    """The file of the damages is read whole."""

    def test_every_case_is_read(self) -> None:
        """No case of the file is lost, and every section has its class."""
        read = sum(len(CASE.findall(part)) for part in SECTIONS.values())
        self.assertEqual(read, TEXT.count("-- > "))
        classes = DamagedDatabaseTests.__subclasses__()
        self.assertEqual(len(classes), len(SECTIONS))
