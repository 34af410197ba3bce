"""A restored database that is not its source is refused, and the difference is named.

`damage.sql` holds what is done to a copy of a healthy restored database, each below what
the drill must say: the sentence begins with it, and is among the first three.
"""

import re
from pathlib import Path

from aidscope.tests.in_process import differences_after
from aidscope.tests.support import Case

DAMAGE = Path(__file__).with_name("damage.sql").read_text()
# The SQL, by what must be said of it.
CASES = re.findall(r"^-- > (.+)\n((?:(?!--).*\n)+)", DAMAGE, re.MULTILINE)


class DamagedDatabaseTests(Case, table={sql: (sql, said) for said, sql in CASES}):
    """Whatever differs is named."""

    def judge(self, row: tuple[str, str]) -> None:
        """The sentence is said, or nothing of what is no damage."""
        sql, sentence = row
        said = differences_after(sql)
        if sentence == "nothing":
            self.assertEqual(said, [])
        elif not any(each.startswith(sentence) for each in said[:3]):
            self.fail("\n".join([f"not said: {sentence}", *said[:10]]))

    def test_every_case_is_read(self) -> None:
        """No case of the file is lost."""
        self.assertEqual(len(CASES), DAMAGE.count("-- > "))
