"""Everything about messages; it reaches the model only through `hrm`.

`client` is what an agent imports, and loads neither torch nor `hrm`. `settings` is what an operator
sets. Each other subject has a package: `broker`, `telemetry`, `delivery`, `process`, `demo`, `cli`.
"""
