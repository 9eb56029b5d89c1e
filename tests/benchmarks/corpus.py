"""A corpus of SQE tasks with slots: prompts whose completions follow from them by a rule.

Each task has a template for its prompts and one for its completions. A slot of the prompt stands in
the completion as it is, or as what follows from it: a severity has its deadline, an endpoint its
method. Nobody accepts every combination of values, so most prompts of a task are new to a model
that learned some of them, and yet their completions are determined.

Slots stand apart from punctuation, so that a value has one token wherever it stands. Some values
have several words: then all words after them stand elsewhere.
"""

import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import NamedTuple

TWIN = "-twin"
"""End of the name of a task's twin."""

Slots = Mapping[str, tuple[str, ...]]
Filling = Mapping[str, str]


class Pair(NamedTuple):
    """An accepted pair of a task."""

    task: str
    prompt: str
    completion: str
    filling: Filling

    @property
    def fields(self) -> dict[str, str]:
        """The line of a file of accepted pairs."""
        return {"task": self.task, "prompt": self.prompt, "completion": self.completion}


@dataclass(frozen=True)
class Task:
    """A task: the form of its prompts, and what follows from them."""

    name: str
    prompt: str
    completion: str
    slots: Slots
    """The values of each slot of the prompt."""
    derived: Mapping[str, tuple[str, Mapping[str, str]]] = field(default_factory=dict)
    """By the name of a place in the completion: the slot that it follows from, and what it is for
    each of its values."""

    def pair(self, filling: Filling) -> Pair:
        """The pair with these values in its slots."""
        follows = {name: rule[filling[slot]] for name, (slot, rule) in self.derived.items()}
        completion = self.completion.format(**filling, **follows)
        return Pair(self.name, self.prompt.format(**filling), completion, filling)

    def fillings(self) -> list[Filling]:
        """All combinations of values."""
        return [dict(zip(self.slots, each, strict=True)) for each in product(*self.slots.values())]

    def twin(self) -> "Task":
        """The task with the same prompts and other rules: each value has what follows the next one.

        Only the puzzle tells a prompt of one from the same prompt of the other.
        """
        derived = {}
        for place, (slot, rule) in self.derived.items():
            following = list(rule.values())
            derived[place] = (slot, dict(zip(rule, following[1:] + following[:1], strict=True)))
        return replace(self, name=self.name + TWIN, derived=derived)


class Split(NamedTuple):
    """Pairs to train on, and others of the same tasks."""

    trained: list[Pair]
    unseen: list[Pair]
    """Pairs with prompts that are not trained, of values that are."""


def split(tasks: Sequence[Task], *, fillings: int, unseen: int, seed: int) -> Split:
    """Draw pairs of each of `tasks`.

    Args:
        tasks: The tasks.
        fillings: Pairs of each task to train on; fewer if it has fewer.
        unseen: Pairs of each task that are held out. They are drawn first, and are the same for
            any number of fillings.
        seed: Seed of the draw.

    Returns:
        The pairs. Of the held-out ones, those are left out that the trained ones do not determine:
        with a value that was never trained.
    """
    parts = Split([], [])
    for task in tasks:
        # Twins have the same prompts, trained and held out.
        source = random.Random(f"{seed}:{task.name.removesuffix(TWIN)}")
        drawn = task.fillings()
        source.shuffle(drawn)
        held_out, rest = drawn[:unseen], drawn[unseen : unseen + fillings]
        seen = {(slot, value) for each in rest for slot, value in each.items()}
        parts.trained.extend(map(task.pair, rest))
        parts.unseen.extend(task.pair(each) for each in held_out if seen.issuperset(each.items()))
    return parts


SERVICES = ("billing", "checkout", "inventory", "login", "search", "shipping", "wallet", "catalog")
ENVIRONMENTS = ("staging", "preview", "sandbox", "production", "canary")
SEVERITIES = ("critical", "major", "minor", "trivial")
DEVICES = ("phone", "tablet", "laptop", "kiosk", "watch")
BROWSERS = ("Chrome", "Firefox", "Safari", "Edge")
LANGUAGES = ("Python", "Java", "Go", "Kotlin", "Rust", "TypeScript")

TASKS = (
    Task(
        "test-plan-outline",
        "Outline a test plan for the {service} service on {environment} with a focus on {focus} .",
        "Scope: the {service} service on {environment} . Focus: {focus} . Start with {first} . "
        "Entry: the {environment} build is green. Exit: no open {gate} defect in {service} .",
        {
            "service": SERVICES,
            "environment": ENVIRONMENTS,
            "focus": ("latency", "access", "recovery", "usability"),
        },
        {
            "first": (
                "focus",
                {
                    "latency": "a baseline run",
                    "access": "a role matrix",
                    "recovery": "a restore drill",
                    "usability": "five user sessions",
                },
            ),
            "gate": (
                "focus",
                {
                    "latency": "major",
                    "access": "critical",
                    "recovery": "critical",
                    "usability": "minor",
                },
            ),
        },
    ),
    Task(
        "bug-triage",
        "Triage a {severity} defect in the {service} service found by {finder} .",
        "Severity {severity} , owner {service} team, reported by {finder} . Fix within {deadline} "
        "and {action} . Tell {finder} when the {service} fix is deployed.",
        {
            "severity": SEVERITIES,
            "service": SERVICES,
            "finder": ("support", "monitoring", "a customer", "an auditor"),
        },
        {
            "deadline": (
                "severity",
                {
                    "critical": "four hours",
                    "major": "two days",
                    "minor": "two weeks",
                    "trivial": "the quarter",
                },
            ),
            "action": (
                "severity",
                {
                    "critical": "page the lead",
                    "major": "block the release",
                    "minor": "add a ticket",
                    "trivial": "note it",
                },
            ),
        },
    ),
    Task(
        "api-check",
        "Write an API check that will {verb} a {resource} as {role} .",
        "Send {method} to /{resource}s as {role} . Expect {status} and a {resource} in the body. "
        "Repeat without a token and expect 401.",
        {
            "verb": ("create", "read", "update", "delete", "replace"),
            "resource": ("invoice", "order", "user", "report", "ticket", "device", "policy"),
            "role": ("admin", "editor", "viewer", "guest"),
        },
        {
            "method": (
                "verb",
                {
                    "create": "POST",
                    "read": "GET",
                    "update": "PATCH",
                    "delete": "DELETE",
                    "replace": "PUT",
                },
            ),
            "status": (
                "role",
                {"admin": "200", "editor": "202", "viewer": "403", "guest": "404"},
            ),
        },
    ),
    Task(
        "load-test",
        "Plan a load test with {users} users against the {service} service for {minutes} minutes.",
        "Ramp to {users} users over {ramp} minutes, hold {minutes} minutes on {service} . Stop if "
        "errors exceed {limit} percent. Compare the p95 of {service} with the last run.",
        {
            "users": ("50", "100", "250", "500", "1000"),
            "service": SERVICES,
            "minutes": ("10", "30", "60", "120"),
        },
        {
            "ramp": ("users", {"50": "2", "100": "3", "250": "5", "500": "8", "1000": "15"}),
            "limit": ("minutes", {"10": "5", "30": "2", "60": "1", "120": "0.5"}),
        },
    ),
    Task(
        "ci-stage",
        "Add a CI stage that runs {kind} tests of the {language} code on every {event} .",
        "stage: {kind} image: {image} script: {command} --{kind} trigger: {event} retry: {retries} "
        "artifacts: reports/{kind}",
        {
            "kind": ("unit", "contract", "smoke", "mutation", "component"),
            "language": LANGUAGES,
            "event": ("push", "merge", "tag", "schedule"),
        },
        {
            "image": (
                "language",
                {
                    "Python": "python:3.12",
                    "Java": "temurin:21",
                    "Go": "golang:1.23",
                    "Kotlin": "gradle:8",
                    "Rust": "rust:1.80",
                    "TypeScript": "node:22",
                },
            ),
            "command": (
                "language",
                {
                    "Python": "pytest",
                    "Java": "mvn verify",
                    "Go": "go test",
                    "Kotlin": "gradle check",
                    "Rust": "cargo test",
                    "TypeScript": "npx vitest",
                },
            ),
            "retries": ("event", {"push": "0", "merge": "1", "tag": "2", "schedule": "3"}),
        },
    ),
    Task(
        "alert-rule",
        "Write an alert for {signal} of the {service} service on {environment} .",
        "alert: {service} {signal} on {environment} expr: {expr} for: {wait} severity: {severity} "
        "runbook: docs/{service}",
        {
            "signal": ("errors", "latency", "saturation", "traffic"),
            "service": SERVICES,
            "environment": ENVIRONMENTS,
        },
        {
            "expr": (
                "signal",
                {
                    "errors": "error_rate > 0.02",
                    "latency": "p99_seconds > 1.5",
                    "saturation": "cpu_share > 0.9",
                    "traffic": "requests < 1",
                },
            ),
            "wait": (
                "signal",
                {"errors": "5m", "latency": "10m", "saturation": "15m", "traffic": "2m"},
            ),
            "severity": (
                "environment",
                {
                    "staging": "info",
                    "preview": "info",
                    "sandbox": "none",
                    "production": "page",
                    "canary": "warning",
                },
            ),
        },
    ),
    Task(
        "browser-matrix",
        "Choose browsers to test the {page} page on a {device} in {language} .",
        "Test the {page} page on a {device} in {first} and {second} , locale {locale} . Take a "
        "screenshot of the {page} page at {width} pixels.",
        {
            "page": ("cart", "profile", "home", "help", "payment", "orders"),
            "device": DEVICES,
            "language": ("German", "French", "Japanese", "Arabic", "Hindi"),
        },
        {
            "first": (
                "device",
                {
                    "phone": "Safari",
                    "tablet": "Chrome",
                    "laptop": "Firefox",
                    "kiosk": "Edge",
                    "watch": "Samsung",
                },
            ),
            "second": (
                "device",
                {
                    "phone": "Chrome",
                    "tablet": "Safari",
                    "laptop": "Edge",
                    "kiosk": "Chrome",
                    "watch": "Opera",
                },
            ),
            "locale": (
                "language",
                {
                    "German": "de-DE",
                    "French": "fr-FR",
                    "Japanese": "ja-JP",
                    "Arabic": "ar-EG",
                    "Hindi": "hi-IN",
                },
            ),
            "width": (
                "device",
                {
                    "phone": "390",
                    "tablet": "820",
                    "laptop": "1440",
                    "kiosk": "1920",
                    "watch": "198",
                },
            ),
        },
    ),
    Task(
        "security-scan",
        "Scan the {service} service for {weakness} before the {release} release.",
        "Run {tool} against {service} with the {weakness} profile. Block the {release} release at "
        "{level} findings. Send the report to {owner} .",
        {
            "service": SERVICES,
            "weakness": ("injection", "secrets", "misconfiguration", "outdated libraries"),
            "release": ("weekly", "monthly", "hotfix", "annual"),
        },
        {
            "tool": (
                "weakness",
                {
                    "injection": "sqlmap",
                    "secrets": "gitleaks",
                    "misconfiguration": "checkov",
                    "outdated libraries": "trivy",
                },
            ),
            "level": (
                "release",
                {"weekly": "high", "monthly": "medium", "hotfix": "critical", "annual": "any"},
            ),
            "owner": (
                "weakness",
                {
                    "injection": "appsec",
                    "secrets": "platform",
                    "misconfiguration": "cloud",
                    "outdated libraries": "architects",
                },
            ),
        },
    ),
    Task(
        "rollback-drill",
        "Describe a rollback drill for {service} on {environment} after a failed {step} .",
        "Freeze {environment} . Undo the {step} of {service} with {undo} . Check {check} on "
        "{environment} , then reopen it for {service} .",
        {
            "service": SERVICES,
            "environment": ENVIRONMENTS,
            "step": ("migration", "rollout", "toggle", "import"),
        },
        {
            "undo": (
                "step",
                {
                    "migration": "the down script",
                    "rollout": "the previous image",
                    "toggle": "the old flag",
                    "import": "the last snapshot",
                },
            ),
            "check": (
                "step",
                {
                    "migration": "row counts",
                    "rollout": "error rates",
                    "toggle": "the page",
                    "import": "checksums",
                },
            ),
        },
    ),
    Task(
        "data-quality",
        "Check the {table} table for {problem} every {period} .",
        "Query {table} for {problem} : {query} . Run it every {period} at {time} . Quarantine rows "
        "of {table} that fail.",
        {
            "table": ("payments", "visits", "claims", "orders", "sensors", "stock", "members"),
            "problem": ("duplicates", "nulls", "outliers", "orphans", "late rows"),
            "period": ("hour", "day", "week", "month"),
        },
        {
            "query": (
                "problem",
                {
                    "duplicates": "count by key above one",
                    "nulls": "required column is null",
                    "outliers": "value beyond four sigma",
                    "orphans": "parent row is missing",
                    "late rows": "arrival after the cut",
                },
            ),
            "time": ("period", {"hour": ":05", "day": "02:00", "week": "Sunday", "month": "first"}),
        },
    ),
    Task(
        "agent-handover",
        "Let the {first} agent hand over {thing} to the {second} agent in {days} days.",
        "{first} sends {thing} with a summary. {second} confirms within {days} days. If {second} "
        "is silent, {first} asks the {owner} owner. Log the handover of {thing} .",
        {
            "first": ("planner", "coder", "tester", "reviewer"),
            "thing": ("scenarios", "fixtures", "findings", "metrics", "mocks"),
            "second": ("runner", "analyst", "reporter", "gatekeeper"),
            "days": ("2", "3", "5"),
        },
        {
            "owner": (
                "thing",
                {
                    "scenarios": "product",
                    "fixtures": "data",
                    "findings": "quality",
                    "metrics": "platform",
                    "mocks": "interface",
                },
            )
        },
    ),
    Task(
        "flaky-test",
        "A {kind} test of {service} fails in {share} percent of runs because of {cause} .",
        "Quarantine the {kind} test of {service} . Cause: {cause} . Remedy: {remedy} . At {share} "
        "percent it gets {priority} priority.",
        {
            "kind": ("unit", "browser", "contract", "nightly"),
            "service": SERVICES,
            "share": ("1", "5", "10", "30"),
            "cause": ("timing", "ordering", "network", "clocks"),
        },
        {
            "remedy": (
                "cause",
                {
                    "timing": "wait for a condition",
                    "ordering": "reset the state",
                    "network": "use a stub",
                    "clocks": "inject the time",
                },
            ),
            "priority": ("share", {"1": "low", "5": "normal", "10": "high", "30": "urgent"}),
        },
    ),
    Task(
        "accessibility-audit",
        "Audit the {page} page for {need} at level {level} .",
        "Check {page} at level {level} for {need} with {tool} . Every failure on {page} names its "
        "{rule} rule. Level {level} needs {share} percent.",
        {
            "page": ("cart", "profile", "home", "help", "payment", "orders"),
            "need": ("contrast", "keyboard use", "captions", "zoom", "screen readers"),
            "level": ("A", "AA", "AAA"),
        },
        {
            "tool": (
                "need",
                {
                    "contrast": "axe",
                    "keyboard use": "a keyboard",
                    "captions": "a listener",
                    "zoom": "400 percent",
                    "screen readers": "NVDA",
                },
            ),
            "rule": (
                "need",
                {
                    "contrast": "1.4.3",
                    "keyboard use": "2.1.1",
                    "captions": "1.2.2",
                    "zoom": "1.4.4",
                    "screen readers": "4.1.2",
                },
            ),
            "share": ("level", {"A": "90", "AA": "95", "AAA": "100"}),
        },
    ),
    Task(
        "chaos-experiment",
        "Design a chaos experiment that injects {fault} into {service} on {environment} .",
        "Hypothesis: {service} on {environment} {holds} under {fault} . Inject {fault} with {tool} "
        "for ten minutes. Abort when {service} orders drop.",
        {
            "fault": ("delay", "loss", "restarts", "disk pressure"),
            "service": SERVICES,
            "environment": ENVIRONMENTS,
        },
        {
            "holds": (
                "fault",
                {
                    "delay": "answers slower",
                    "loss": "retries quietly",
                    "restarts": "keeps sessions",
                    "disk pressure": "sheds load",
                },
            ),
            "tool": (
                "fault",
                {
                    "delay": "tc",
                    "loss": "toxiproxy",
                    "restarts": "chaoskube",
                    "disk pressure": "stress-ng",
                },
            ),
        },
    ),
    Task(
        "test-data",
        "Generate {count} {entity} records for the {environment} database with {trait} .",
        "Seed {environment} with {count} {entity} records. Each has {trait} : {recipe} . Remove "
        "them after the run with tag {entity} {count} .",
        {
            "count": ("20", "100", "400", "1000"),
            "entity": ("customer", "vehicle", "patient", "tenant", "parcel"),
            "environment": ENVIRONMENTS,
            "trait": ("unicode names", "old dates", "zero balances", "long notes"),
        },
        {
            "recipe": (
                "trait",
                {
                    "unicode names": "names from five scripts",
                    "old dates": "dates before 1970",
                    "zero balances": "amount exactly zero",
                    "long notes": "notes of 4000 characters",
                },
            )
        },
    ),
    Task(
        "release-gate",
        "May the {service} release go to {environment} with {open} open {severity} defects?",
        "{answer} for {service} : {open} open {severity} defects on {environment} . {reason} The "
        "{service} owner signs.",
        {
            "service": SERVICES,
            "environment": ENVIRONMENTS,
            "open": ("zero", "one", "three", "nine"),
            "severity": SEVERITIES,
        },
        {
            "answer": (
                "severity",
                {"critical": "No", "major": "Ask", "minor": "Yes", "trivial": "Yes"},
            ),
            "reason": (
                "severity",
                {
                    "critical": "Critical ones always block.",
                    "major": "A risk owner decides.",
                    "minor": "They are listed as known.",
                    "trivial": "They are not counted.",
                },
            ),
        },
    ),
    Task(
        "contract-test",
        "Write a contract test between {consumer} and {provider} for the {event} event.",
        "Given {provider} publishes {event} , {consumer} reads {keys} . Verify with {format} . "
        "Break the build of {provider} , not of {consumer} .",
        {
            "consumer": ("billing", "search", "wallet", "mailer"),
            "provider": ("checkout", "inventory", "login", "shipping"),
            "event": ("created", "cancelled", "shipped", "refunded", "renamed"),
        },
        {
            "keys": (
                "event",
                {
                    "created": "id and owner",
                    "cancelled": "id and reason",
                    "shipped": "id and carrier",
                    "refunded": "id and amount",
                    "renamed": "id and name",
                },
            ),
            "format": (
                "provider",
                {
                    "checkout": "Pact",
                    "inventory": "Avro",
                    "login": "OpenAPI",
                    "shipping": "Protobuf",
                },
            ),
        },
    ),
    Task(
        "coverage-goal",
        "Set a coverage goal for the {module} module in {language} at {risk} risk.",
        "{module} at {risk} risk: {goal} percent of {unit} . Measure with {tool} in every "
        "{language} build. Below the goal {module} cannot merge.",
        {
            "module": ("pricing", "routing", "parsing", "caching", "auth", "export", "audit"),
            "language": LANGUAGES,
            "risk": ("low", "normal", "high", "extreme"),
        },
        {
            "goal": ("risk", {"low": "60", "normal": "75", "high": "85", "extreme": "95"}),
            "unit": (
                "risk",
                {"low": "lines", "normal": "lines", "high": "branches", "extreme": "paths"},
            ),
            "tool": (
                "language",
                {
                    "Python": "coverage.py",
                    "Java": "JaCoCo",
                    "Go": "cover",
                    "Kotlin": "Kover",
                    "Rust": "tarpaulin",
                    "TypeScript": "istanbul",
                },
            ),
        },
    ),
    Task(
        "incident-review",
        "Review the {duration} incident in {service} caused by {cause} .",
        "{service} was down for {duration} . Root cause: {cause} . Action: {action} , owner "
        "{owner} . Share the {service} review within a week.",
        {
            "duration": ("10 minute", "one hour", "six hour", "two day"),
            "service": SERVICES,
            "cause": ("a certificate", "a query", "a queue", "a deploy", "a vendor"),
        },
        {
            "action": (
                "cause",
                {
                    "a certificate": "renew it by robot",
                    "a query": "add an index",
                    "a queue": "alert on its age",
                    "a deploy": "roll out in steps",
                    "a vendor": "add a second one",
                },
            ),
            "owner": (
                "cause",
                {
                    "a certificate": "platform",
                    "a query": "database",
                    "a queue": "messaging",
                    "a deploy": "delivery",
                    "a vendor": "purchasing",
                },
            ),
        },
    ),
    Task(
        "mobile-run",
        "Schedule the {suite} suite of the {app} app on {system} {version} phones.",
        "Reserve {farm} phones with {system} {version} . Install {app} , run {suite} in {shards} "
        "shards. Upload videos of {app} failures.",
        {
            "suite": ("smoke", "regression", "upgrade", "battery"),
            "app": ("courier", "banking", "fitness", "tickets", "scanner"),
            "system": ("Android", "iOS", "Harmony"),
            "version": ("13", "14", "15", "16"),
        },
        {
            "farm": (
                "system",
                {"Android": "Firebase", "iOS": "BrowserStack", "Harmony": "in-house"},
            ),
            "shards": (
                "suite",
                {"smoke": "2", "regression": "12", "upgrade": "4", "battery": "1"},
            ),
        },
    ),
    Task(
        "backup-check",
        "Verify the {frequency} backup of the {store} store in {region} .",
        "Restore the {frequency} backup of {store} in {region} to {target} . Compare {measure} . "
        "Accept a loss of {loss} for {store} .",
        {
            "frequency": ("hourly", "nightly", "weekly", "monthly"),
            "store": ("ledger", "profile", "media", "event", "index"),
            "region": ("Frankfurt", "Ohio", "Mumbai", "Sydney", "Osaka"),
        },
        {
            "target": (
                "region",
                {
                    "Frankfurt": "Paris",
                    "Ohio": "Oregon",
                    "Mumbai": "Hyderabad",
                    "Sydney": "Melbourne",
                    "Osaka": "Tokyo",
                },
            ),
            "measure": (
                "store",
                {
                    "ledger": "balances",
                    "profile": "row counts",
                    "media": "checksums",
                    "event": "offsets",
                    "index": "ten queries",
                },
            ),
            "loss": (
                "frequency",
                {
                    "hourly": "an hour",
                    "nightly": "a day",
                    "weekly": "a week",
                    "monthly": "a month",
                },
            ),
        },
    ),
    Task(
        "exploratory-charter",
        "Write a charter to explore {area} with {lens} for {minutes} minutes as a {persona} .",
        "Explore {area} as a {persona} with {lens} for {minutes} minutes to discover {risk} . "
        "Note every surprise in {area} . Debrief after {minutes} minutes.",
        {
            "area": ("onboarding", "refunds", "sharing", "imports", "settings"),
            "lens": ("boundaries", "interruptions", "personas", "tours"),
            "minutes": ("30", "45", "60", "90"),
            "persona": ("novice", "expert", "attacker", "manager"),
        },
        {
            "risk": (
                "lens",
                {
                    "boundaries": "wrong limits",
                    "interruptions": "lost work",
                    "personas": "missing rights",
                    "tours": "dead ends",
                },
            )
        },
    ),
)
"""Tasks of every category of content."""


def mixed(count: int) -> list[Pair]:
    """`count` pairs of all tasks, in random order."""
    pairs = split(TASKS, fillings=-(-count // len(TASKS)), unseen=1, seed=0).trained
    random.Random(0).shuffle(pairs)
    return pairs[:count]


if __name__ == "__main__":
    # `python -m tests.benchmarks.corpus 500 > 500.jsonl`: pairs that name no task.
    for pair in mixed(int(sys.argv[1])):
        print(json.dumps({"prompt": pair.prompt, "completion": pair.completion}))  # noqa: T201
