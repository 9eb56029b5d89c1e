"""All scenarios: their names, what the table calls them, and their sizes."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.faults.ledger import Row
from tests.faults.scenarios import devices, inputs, network, servers, workers
from tests.faults.scenarios.size import Size


@dataclass(frozen=True)
class Scenario:
    """A fault.

    Args:
        title: What the table calls it; may name parts of the size.
        run: Makes it, in a folder, and closes the ledger.
        full: Its size for the table.
        short: Its size in the suite: some seconds.
    """

    title: str
    run: Callable[[Path, Size], Row]
    full: Size
    short: Size

    def title_of(self, size: Size) -> str:
        """The scenario's name in the table, which depends on the size."""
        return self.title.format(**asdict(size))


SCENARIOS = {
    "killed": Scenario(
        "worker killed in mid-evaluation", workers.killed, Size(10, 100), Size(2, 30)
    ),
    "told-to-stop": Scenario(
        "two SIGTERM under full load, grace too short",
        workers.told_to_stop,
        Size(10, 100),
        Size(1, 40),
    ),
    "frozen-worker": Scenario(
        "worker frozen for {seconds} s, another goes on",
        workers.frozen,
        Size(3, 100, 5),
        Size(1, 30, 2.5),
    ),
    "cut-off": Scenario(
        f"worker cut off for {{seconds}} s by a {workers.cut_off_by()}, another goes on",
        workers.cut_off,
        Size(3, 100, 10),
        Size(1, 30, 2.5),
    ),
    "slow": Scenario(
        "visibility shorter than an evaluation", workers.slow, Size(4, 100), Size(1, 30)
    ),
    "clocks": Scenario("clocks an hour apart", workers.clocks, Size(4, 100), Size(1, 30)),
    "restarted": Scenario("Redis restarted", servers.restarted, Size(20, 100), Size(1, 100)),
    "frozen": Scenario(
        "Redis frozen for {seconds} s", servers.frozen, Size(1, 500, 30), Size(1, 100, 3)
    ),
    "read-only": Scenario(
        "Redis read-only for {seconds} s", servers.read_only, Size(3, 100, 5), Size(1, 30)
    ),
    "full": Scenario("Redis full", servers.full, Size(3, 500, 2), Size(1, 30)),
    "refused": Scenario(
        "Redis refuses connections for {seconds} s", network.refused, Size(5, 100, 5), Size(1, 30)
    ),
    "cut": Scenario("every connection cut", network.cut, Size(20, 50), Size(3, 30)),
    "delayed": Scenario(
        f"every connection {network.DELAY} s slower, each way, for {{seconds}} s",
        network.delayed,
        Size(2, 100, 10),
        Size(1, 30, 2),
    ),
    "sentinel": Scenario(
        "primary killed, failover by Sentinel", servers.failed_over, Size(3, 100), Size(1, 50)
    ),
    "replicaof": Scenario(
        "failover by REPLICAOF, connections open", servers.handed_over, Size(6, 100), Size(2, 50)
    ),
    "repeated": Scenario("each id sent three times", inputs.repeated, Size(3, 500), Size(1, 100)),
    "deadly": Scenario(
        "message that ends its worker, in each place of a batch of 64",
        inputs.deadly,
        Size(64, 100),
        Size(2, 20),
    ),
    "broken": Scenario(
        "message that always meets an error, in each place of a batch of 64",
        inputs.broken,
        Size(64, 100),
        Size(2, 20),
    ),
    "failing-once": Scenario("model fails once", inputs.failing_once, Size(24, 100), Size(4, 50)),
    "failing-always": Scenario(
        "model fails always", inputs.failing_always, Size(5, 50), Size(1, 30)
    ),
    "lost": Scenario("device lost under load", devices.lost, Size(2, 100), Size(1, 60)),
    "hung": Scenario("engine hangs under load", devices.hung, Size(2, 100), Size(1, 60)),
    "backlog": Scenario(
        "{messages:,} messages wait for the first worker",
        inputs.backlog,
        Size(1, 100_000),
        Size(1, 2000),
    ),
}
