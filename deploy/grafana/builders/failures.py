"""The dashboard for the second look: what changed, where, since when; which messages show it."""

from grafana_foundation_sdk.models import dashboard

from deploy.grafana.builders import board
from deploy.grafana.builders.board import Section
from deploy.grafana.builders.panels import (
    BYTES,
    COUNT,
    GREEN,
    GREY,
    ORANGE,
    PER_SECOND,
    PLAIN,
    RED,
    SECONDS,
    SHARE,
    Column,
    Lines,
    Query,
    Text,
    bars_panel,
    lines_panel,
    matrix_panel,
    stat_panel,
    table_panel,
    text_panel,
)
from deploy.grafana.builders.queries import (
    CHECKPOINT,
    ENOUGH,
    UNSOLVED,
    WINDOW,
    fleet_increase,
    increase,
    largest,
    mean,
    quantile,
    rate,
    share,
)

LANE = 'lane=~"$lane"'
KNOWN = 'known=~"$known"'
AGENT = 'agent=~"$agent"'
CATEGORY = 'category=~"$category"'

DAY = 86_400

EFFECT = 0.3
"""Smallest difference of token shares that matters, in Cohen's w: a medium effect."""

CHANCE = 138.0
"""Chance alone makes w² larger than this, divided by the number of tokens, once in a thousand
times: 4 times 34.5, the design effect times χ² with 13 degrees of freedom. The recording rules of
token drift say why."""

RARE = 0.005
"""Share of all tokens below which a token is left out: a few more of it are no drift."""

_EVALUATED = (CHECKPOINT, LANE, KNOWN)

_UNSOLVED_STEPS = ((None, "transparent"), (0.05, ORANGE), (0.2, RED))


def build() -> dashboard.Dashboard:
    """Build the dashboard."""
    return board.build(
        "Failures",
        "What changed, where, since when, and which messages show it? Unsolved messages by agent, "
        "category, pattern and token; refused ones by reason; and how to read them.",
        [
            board.checkpoint(),
            board.choice("lane", "Lane", "live,backfill,both : live|backfill", "live"),
            board.choice("known", "Known prompts", "true,false,all : .+", "true"),
            board.agent(),
            board.category(),
            board.window(),
            board.choice("before", "Compared with the time before", "30m,1h,6h,1d,7d", "1d"),
        ],
        [_now(), _where(), _model(), _evidence(), _messages()],
    )


def _counted(*matchers: str, by: str = "") -> str:
    return increase("evaluations_total", *_EVALUATED, CATEGORY, *matchers, by=by)


def _of_agents(*matchers: str, by: str) -> str:
    return fleet_increase("agent_evaluations_total", KNOWN, AGENT, CATEGORY, *matchers, by=by)


def _now() -> Section:
    refused = increase("rejected_total")
    evaluated = increase("evaluations_total")
    return Section(
        "Now",
        [
            stat_panel(
                Text(
                    "Unsolved",
                    "Share of the chosen messages, of all agents, that were not answered as "
                    "accepted, and their number.",
                    "too few to tell",
                ),
                [
                    Query(share(_counted(UNSOLVED), _counted(), at_least=ENOUGH), "unsolved"),
                    Query(_counted(), "messages"),
                ],
                unit=SHARE,
                steps=((None, GREEN), (0.05, ORANGE), (0.2, RED)),
                width=6,
            ),
            stat_panel(
                Text(
                    "Solved, but with another text",
                    "Completions that differ from every accepted one in words that the model does "
                    "not see, as share of those whose text could be checked. They are solved, so "
                    "they are in no other panel of failures.",
                    "no text was checked",
                ),
                [Query(_unseen_changes(), "unseen changes")],
                unit=SHARE,
                steps=((None, GREEN), (0.01, ORANGE), (0.05, RED)),
                width=6,
            ),
            stat_panel(
                Text(
                    "Dead letters",
                    "Share of all messages, of every lane, that could not be evaluated.",
                    "no message",
                ),
                [Query(share(refused, f"({refused} + {evaluated})"), "refused")],
                unit=SHARE,
                steps=((None, GREEN), (0.001, ORANGE), (0.01, RED)),
                width=6,
            ),
            stat_panel(
                Text(
                    "Evidence reaches back",
                    "Age of the oldest failure and dead letter that Redis keeps. What is older "
                    "cannot be read any more.",
                    "no monitor",
                ),
                [Query(f"{largest('stream_oldest_seconds', by='stream')} > 0", "{{stream}}")],
                unit=SECONDS,
                steps=((None, GREY), (DAY, GREEN)),
                width=6,
            ),
        ],
    )


def _unseen_changes() -> str:
    matchers = (CHECKPOINT, LANE)
    unseen = increase("text_checks_total", *matchers, 'text="different"', 'solved="true"')
    return share(unseen, increase("text_checks_total", *matchers, 'text!="unknown"'))


def _where() -> Section:
    per_category = share(
        _counted(UNSOLVED, by="category"), _counted(by="category"), at_least=ENOUGH
    )
    by_agent = share(_of_agents(UNSOLVED, by="agent"), _of_agents(by="agent"))
    earlier = per_category.replace(f"[{WINDOW}]", f"[{WINDOW}] offset $before")
    per_pattern = share(
        increase("failures_total", *_EVALUATED, by="pattern"),
        increase("evaluations_total", *_EVALUATED),
        on="",
    )
    return Section(
        "What changed, where, since when",
        [
            lines_panel(
                Text(
                    "Unsolved, by pattern",
                    "Share of the messages of all categories and agents. Each unsolved message "
                    "counts under the first pattern that applies.",
                ),
                [Query(per_pattern, "{{pattern}}")],
                unit=SHARE,
                width=8,
                look=Lines(low=0, stacked=True),
            ),
            lines_panel(
                Text(
                    "Unsolved, by category",
                    "Share of the messages of each category, of all agents.",
                ),
                [
                    Query(
                        share(_counted(UNSOLVED, by="category"), _counted(by="category")),
                        "{{category}}",
                    )
                ],
                unit=SHARE,
                width=8,
            ),
            lines_panel(
                Text(
                    "Unsolved, by agent",
                    "Share of each agent's live messages, of all checkpoints; the ten agents with "
                    "the most.",
                ),
                [Query(f"topk(10, {by_agent})", "{{agent}}")],
                unit=SHARE,
                width=8,
            ),
            matrix_panel(
                Text(
                    "Unsolved, by agent and category",
                    "Share of live messages, of all checkpoints. A row says that an agent changed, "
                    "a column that something changed which agents share: a prompt template, a "
                    "model, a tool.",
                ),
                share(_of_agents(UNSOLVED, by="agent, category"), _of_agents(by="agent, category")),
                row="agent",
                column="category",
                unit=SHARE,
                steps=_UNSOLVED_STEPS,
                width=12,
            ),
            table_panel(
                Text(
                    "Now and before",
                    "Unsolved share of each category now, and as long ago as `Compared with` says; "
                    f"each only of at least {ENOUGH} messages.",
                    "too few to tell",
                ),
                {"category": "category"},
                [
                    Column("change", f"{per_category} - {earlier}", SHARE, _CHANGE_STEPS, 1),
                    Column("now", per_category, SHARE, decimals=1),
                    Column("before", earlier, SHARE, decimals=1),
                    Column("messages", f"{_counted(by='category')} > 0", decimals=0),
                ],
                width=12,
                sort_by="change",
            ),
            lines_panel(
                Text(
                    "Unsolved, by difficulty",
                    "Share of the messages of each difficulty, of all agents.",
                ),
                [
                    Query(
                        share(_counted(UNSOLVED, by="difficulty"), _counted(by="difficulty")),
                        "{{difficulty}}",
                    )
                ],
                unit=SHARE,
                width=8,
            ),
            bars_panel(
                Text(
                    "Commonest confusions",
                    "Accepted tokens that the model predicts, and what known live messages had "
                    "in their place, of all checkpoints and agents, within the time shown.",
                    "no wrong token",
                ),
                [Query(_confusions(), "{{target}} → {{predicted}}")],
                unit=COUNT,
                width=8,
                steps=PLAIN,
            ),
            lines_panel(
                Text(
                    "Right tokens",
                    "Mean over messages of all categories and agents. Token accuracy compares by "
                    "position; edit similarity tolerates words that were put in or left out.",
                ),
                [
                    Query(mean("token_accuracy", *_EVALUATED, window=WINDOW), "token accuracy"),
                    Query(mean("edit_similarity", *_EVALUATED, window=WINDOW), "edit similarity"),
                ],
                unit=SHARE,
                width=8,
                look=Lines(high=1),
            ),
        ],
    )


_CHANGE_STEPS = ((None, GREEN), (0.02, "transparent"), (0.05, ORANGE), (0.2, RED))


def _confusions() -> str:
    pairs = increase("token_confusions_total", by="target, predicted", window="$__range")
    return f"topk(12, {pairs} > 0)"


def _model() -> Section:
    evaluated = increase("evaluations_total", CHECKPOINT, LANE, by="")
    return Section(
        "What the model can know",
        [
            lines_panel(
                Text(
                    "Texts",
                    "Completions of all categories and agents, by whether they are accepted ones, "
                    "which hashes of the texts decide. `different` ones that are solved are "
                    "changes that the model does not see.",
                ),
                [
                    Query(
                        share(
                            increase("text_checks_total", CHECKPOINT, LANE, by="text, solved"),
                            increase("text_checks_total", CHECKPOINT, LANE),
                            on="",
                        ),
                        "{{text}}, solved {{solved}}",
                    )
                ],
                unit=SHARE,
                width=8,
                look=Lines(low=0, stacked=True),
            ),
            lines_panel(
                Text(
                    "Prompts",
                    "Messages of all categories and agents, by how training knows their prompts. "
                    "`new` ones are of a task with too few accepted messages: there is something "
                    "to accept and to train.",
                ),
                [
                    Query(
                        share(
                            increase("prompt_matches_total", CHECKPOINT, LANE, by="match"),
                            increase("prompt_matches_total", CHECKPOINT, LANE),
                            on="",
                        ),
                        "{{match}}",
                    ),
                    Query(
                        share(
                            increase("evaluations_total", CHECKPOINT, LANE, 'known="false"'),
                            evaluated,
                        ),
                        "unknown to the model",
                    ),
                ],
                unit=SHARE,
                width=8,
                look=Lines(low=0, high=1, dashed=("unknown to",)),
            ),
            lines_panel(
                Text("Cut short", "Share of messages with words that the model does not read."),
                [Query(share(increase("truncated_total", LANE), _read()), "messages")],
                unit=SHARE,
                width=4,
            ),
            lines_panel(
                Text("Not read", "Words that the model does not read, of a message on average."),
                [Query(share(increase("unread_words_total", LANE), _read()), "words")],
                unit=COUNT,
                width=4,
            ),
            lines_panel(
                Text(
                    "Token drift",
                    "How far the tokens of live completions are from those of training: Cohen's w, "
                    "0.1 for a small effect and 0.5 for a large one. Above the dashed line it is "
                    "more than chance, and not too small to matter: as SQEHRMTokenDrift has it.",
                    "no live message, or a checkpoint without figures of its tokens",
                ),
                [
                    Query(f"sqrt(sum by (checkpoint) ({_drift()}))", "{{checkpoint}}"),
                    Query(
                        f"sqrt({EFFECT:g} ^ 2 + {CHANCE:g} / ({_tokens('checkpoint')} > 0))",
                        "drift, {{checkpoint}}",
                    ),
                ],
                unit=COUNT,
                width=8,
                look=Lines(low=0, dashed=("drift,",)),
            ),
            bars_panel(
                Text(
                    "Token drift, by token",
                    "The parts of w²: which tokens are more or less frequent than in training.",
                    "no live message, or a checkpoint without figures of its tokens",
                ),
                [Query(f"topk(12, sum by (token) ({_drift()}))", "{{token}}")],
                unit=COUNT,
                width=8,
            ),
            lines_panel(
                Text(
                    "The Q head",
                    "How sure the model is that the accepted completion is predicted, the median "
                    "by outcome; and how often it is right. It sees the prompt and never the "
                    "completion, so it is right less often if agents change.",
                ),
                [
                    Query(
                        quantile(0.5, "q_halt_probability", by="outcome"),
                        "halts with, if {{outcome}}",
                    ),
                    Query(
                        share(
                            increase("q_halt_correct_total", LANE),
                            increase("evaluations_total", LANE),
                        ),
                        "right",
                    ),
                ],
                unit=SHARE,
                width=8,
                look=Lines(low=0, high=1),
            ),
        ],
    )


def _read() -> str:
    return increase("evaluations_total", LANE)


def _tokens(by: str) -> str:
    return increase("tokens_total", CHECKPOINT, by=by)


def _drift() -> str:
    """The terms of w² = Σ (p - q)² / q, by checkpoint and token: p live, and q in training."""
    live = share(_tokens("checkpoint, token"), _tokens("checkpoint"), on="checkpoint")
    ratio = largest("checkpoint_training_token_ratio", CHECKPOINT, by="checkpoint, token")
    trained = f"clamp_min({ratio}, {RARE:g})"
    return f"({live} - {trained}) ^ 2 / {trained}"


def _evidence() -> Section:
    return Section(
        "Dead letters and evidence",
        [
            lines_panel(
                Text(
                    "Dead letters, by reason",
                    "Messages a second, of every lane, that could not be evaluated.",
                ),
                [Query(rate("rejected_total", by="reason", window=WINDOW), "{{reason}}")],
                unit=PER_SECOND,
                width=8,
                look=Lines(low=0, stacked=True),
            ),
            lines_panel(
                Text(
                    "How far evidence reaches back",
                    "Age of the oldest entry of each stream. If it falls while failures come, "
                    "their onset is being pushed out.",
                ),
                [Query(largest("stream_oldest_seconds", by="stream"), "{{stream}}")],
                unit=SECONDS,
                width=8,
                look=Lines(low=0),
            ),
            lines_panel(
                Text(
                    "Memory of the evidence",
                    "Bytes of the entries of each stream; Redis takes about as much for them.",
                ),
                [Query(largest("stream_bytes", by="stream"), "{{stream}}")],
                unit=BYTES,
                width=8,
                look=Lines(low=0),
            ),
            lines_panel(
                Text("Entries kept", "Entries that each stream keeps."),
                [Query(largest("stream_entries", by="stream"), "{{stream}}")],
                unit=COUNT,
                width=12,
                look=Lines(low=0),
            ),
            lines_panel(
                Text(
                    "Kept and left out",
                    "Entries added to the streams a second; and failures that were counted and not "
                    "kept, because their agent and pattern had their share.",
                ),
                [
                    Query(
                        f"max by (stream) ({rate('stream_added_total', by='instance, stream')})",
                        "{{stream}}",
                    ),
                    Query(f"max({rate('failures_left_out_total', by='instance')})", "left out"),
                ],
                unit=PER_SECOND,
                width=12,
                look=Lines(low=0),
            ),
        ],
    )


MESSAGES = r"""
Failures of the time that is shown above, those of the chosen agents and categories, as Redis keeps
them, the oldest first:

```sh
redis-cli --json XRANGE sqe:failures ${__from} ${__to} COUNT 1000 | jq '
  .[][1] as $f | [range(0; $f | length; 2) | {($f[.]): $f[. + 1]}] | add
  | select(.agent_id | test("^(${agent:pipe})$"))
  | select(.category | test("^(${category:pipe})$"))
  | .verdict |= fromjson | .message |= fromjson'
```

In the verdict, `predicted_sequence` is **what was accepted**; the message has what the agent
answered instead. `text` says `same` or `normalised` if the completion is an accepted one after all.
Messages that were refused, with their `reason` and `detail`:

```sh
redis-cli --json XRANGE sqe:dead-letters ${__from} ${__to} COUNT 1000
```

The Redis user `viewer` of `deploy/redis/users.acl` may read both, and no queue. With a namespace,
the names begin with it, in braces. `deploy/RUNBOOK.md` says what to do for each alert.
"""


def _messages() -> Section:
    return Section(
        "Which messages show it",
        [
            text_panel(
                Text("Read the messages", "Commands for the time that is shown."),
                MESSAGES,
                width=24,
                height=11,
            )
        ],
    )
