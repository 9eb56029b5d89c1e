"""worker.delivery.requirements: the list of permissions is complete."""

import re

from worker.delivery import scripts
from worker.delivery.requirements import NEEDED, WITHOUT_KEYS
from worker.delivery.scripts import Script


def test_every_command_of_a_script_is_checked() -> None:
    texts = [each.text for each in vars(scripts).values() if isinstance(each, Script)]
    called = {name for text in texts for name in re.findall(r"\bcall\('(\w+)'", text)}
    assert "XADD" in called
    assert called <= NEEDED.keys() | {name for name, *_ in WITHOUT_KEYS}
