"""Grafana's dashboards as code, on Grafana's own typed SDK.

`queries` writes PromQL, `panels` the kinds of panels, `board` the frame that all dashboards share:
variables, annotations and links. `overview`, `failures` and `fleet` are the dashboards. Knows the
names of metrics and labels; imports nothing of the workers.
"""
