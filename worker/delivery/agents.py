"""The figures of each agent, counted inside Redis by the script that stores outcomes.

The script that marks a message as counted also counts it here, so that no redelivery, killed worker
or restart counts it twice, and every reader sees the whole fleet.

- **Fields.** `AGENT CATEGORY KNOWN OUTCOME` holds a number of live messages. `AGENT` alone says
  that the agent has a place, and `#` how many have one.
- **Bounds.** The first `MOST_AGENTS` agents keep their places; all others are counted together as
  `other`. So the hash has at most a few thousand fields, whatever is sent.
- **Canaries.** The monitor's messages carry the agent `CANARY_AGENT` and an id that the monitor has
  put into the set of canaries, which an agent's user of Redis cannot write to. They are no agent's.
  Without such an id, a message of this agent is counted like any other.

Knows verdicts and a hash; nothing of how outcomes are stored.
"""

from enum import IntEnum

from schemas import Verdict
from worker.broker.contract import CANARY_AGENT

MOST_AGENTS = 100
"""Agents with figures of their own, each at most four for each of the seven categories."""

OTHER_AGENTS = "other"
"""Stands for the agents without a place."""


class Counted(IntEnum):
    """How an outcome that was stored counts."""

    REPEATED = 0
    """Its message was counted before."""
    FIRST = 1
    """It is the first of its message."""
    CANARY = 2
    """It is the first, and the message is the monitor's."""


def figures_of(verdict: Verdict) -> str:
    """Name the field that a live message with this verdict adds to.

    If the message says that it is a canary, a question mark and its id come first.
    """
    outcome = "solved" if verdict.solved else "unsolved"
    field = f"{verdict.agent_id} {verdict.category} {str(verdict.known).lower()} {outcome}"
    return f"?{verdict.message_id} {field}" if verdict.agent_id == CANARY_AGENT else field


_MARK = ord("?")

AGENTS = f"""
-- KEYS[6]: the hash of agents' figures. KEYS[7]: the set of canaries.
local function kind_of(of_agent)
  if string.byte(of_agent) ~= {_MARK} then return {Counted.FIRST:d} end
  local found, reply = pcall(call, 'SISMEMBER', KEYS[7], string.match(of_agent, '^.(%S+)'))
  return found and reply == 1 and {Counted.CANARY:d} or {Counted.FIRST:d}
end
-- Numbers by field: many messages of a script are of few agents.
local of_agents = {{}}
local function add(of_agent)
  if of_agent == '' then return end
  if string.byte(of_agent) == {_MARK} then of_agent = string.match(of_agent, ' (.*)$') end
  of_agents[of_agent] = (of_agents[of_agent] or 0) + 1
end
local function count_agents()
  for field, count in pairs(of_agents) do
    -- Only a new field may be of an agent without a place.
    if call('HINCRBY', KEYS[6], field, count) == count then
      local agent, rest = string.match(field, '^(%S+)(.*)$')
      if call('HEXISTS', KEYS[6], agent) == 0 then
        if call('HINCRBY', KEYS[6], '#', 1) <= {MOST_AGENTS} then
          call('HSET', KEYS[6], agent, '')
        else
          call('HINCRBY', KEYS[6], '#', -1)
          call('HDEL', KEYS[6], field)
          call('HINCRBY', KEYS[6], '{OTHER_AGENTS}' .. rest, count)
        end
      end
    end
  end
end
"""
"""Functions for a script: `kind_of` and `add` for each outcome, then `count_agents` once. What
somebody else has put into the two keys may make the last one fail, but must not stop an outcome."""
