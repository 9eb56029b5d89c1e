"""Values as Grafana writes them: units, mappings and colours."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

COLORS = {
    "green": "#3f9c4b",
    "orange": "#e8871e",
    "red": "#d1323f",
    "blue": "#3274d9",
    "text": "#4a4f57",
    "transparent": "none",
}

TIMES = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs"))

BYTES = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))

COUNTS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))


@dataclass(frozen=True)
class Format:
    """How a field's values are shown: the part of a panel's field configuration that matters."""

    unit: str = "short"
    decimals: int | None = None
    steps: Sequence[Mapping[str, Any]] = ()
    names: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Read the defaults of a panel, or the properties of an override."""
        mappings = config.get("mappings", ())
        return cls(
            config.get("unit", "short"),
            config.get("decimals"),
            config.get("thresholds", {}).get("steps", ()),
            {name: result for each in mappings for name, result in each["options"].items()},
        )

    def text(self, value: float) -> str:
        """Write a value with its unit."""
        if (mapped := self._mapped(value)) is not None:
            return str(mapped["text"])
        if not math.isfinite(value):
            return ""
        match self.unit:
            case "percentunit":
                decimals = 1 if self.decimals is None else self.decimals
                return f"{round(100 * value, decimals) + 0.0:.{decimals}f} %"  # and no -0.0
            case "s":
                return _scaled(value, TIMES)
            case "bytes":
                return _scaled(value, BYTES)
        suffix = self.unit.partition("suffix:")[2]
        return f"{_scaled(value, COUNTS, self.decimals)}{suffix}"

    def color(self, value: float) -> str:
        """The colour of a value: its name's, or that of the step which it reaches."""
        mapped = self._mapped(value)
        name = mapped["color"] if mapped is not None else "text"
        if mapped is None:
            for step in self.steps:
                if step["value"] is None or value >= step["value"]:
                    name = step["color"]
        return COLORS[name]

    def _mapped(self, value: float) -> Mapping[str, Any] | None:
        return self.names.get(f"{value:g}")


def _scaled(value: float, scales: Sequence[tuple[float, str]], decimals: int | None = None) -> str:
    """Write a value with the largest unit that it reaches, and three digits."""
    if not value:
        return "0 s" if scales is TIMES else f"0 {scales[-1][1]}".strip()
    for size, unit in scales:
        if abs(value) >= size or (size, unit) == scales[-1]:
            number = value / size
            digits = max(0, 2 - int(math.log10(max(abs(number), 1e-9)))) if number else 0
            text = f"{number:.{digits if decimals is None else decimals}f}"
            if "." in text:
                text = text.rstrip("0").rstrip(".")
            return f"{text} {unit}".strip()
    raise AssertionError(scales)
