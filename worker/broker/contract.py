"""The contract of producers and workers beside the names in Redis: tasks, batches, timeouts.

Constants only.
"""

EVALUATE = "sqe.evaluate"
"""Task that evaluates one message."""

EVALUATE_BATCH = "sqe.evaluate_batch"
"""Task that evaluates a list of up to `MAX_BATCH` messages: one outcome each, in order."""

TASKS = (EVALUATE, EVALUATE_BATCH)

MAX_BATCH = 256
"""Largest number of messages in a batch. At this size the broker's work per message no longer
matters; a larger batch could exceed a few megabytes and occupy one worker for long."""

ENQUEUED_AT = "sqe_enqueued_at"
"""Task header with the time of enqueueing in Unix seconds. Any other value counts as absent."""

MESSAGES = "sqe_messages"
"""Task header with the number of messages of a batch. Who sends it also adds them to
`worker.broker.keys.BATCHED`, in the same transaction. Where waiting messages are counted, a batch
without it is one."""

KEEP_RESULT = "sqe_keep_result"
"""Task header with the seconds for which the outcomes can be fetched. 0 for none, which are not
announced either. Any value but a finite number from 0 on counts as absent: an outcome that nobody
fetches costs some memory for an hour, and one that is missing makes its reader wait."""

CANARY_AGENT = "sqe-canary"
"""Agent of the messages that the monitor sends with a known answer. Other senders'
messages with this agent count like any other."""

CLIENT_MODULE = "sqe_hrm_client"
"""Module in an agent's installation that has the error of a rejection, `MessageRejected`."""

CONNECT_TIMEOUT = 5.0
"""Seconds to connect. A running Redis accepts within milliseconds, also across regions."""

WAIT_SECONDS = 1.0
"""Seconds for replicas to confirm a write, if they have to. They usually do within milliseconds; a
replica that is synchronising again takes longer, and the write is then made once more."""

SOCKET_TIMEOUT = 10.0
"""Seconds for any reply. After a longer pause (a fork, a failover) it is better to reconnect."""
