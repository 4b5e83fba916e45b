"""All that is said to a message broker, and the private one for a machine without.

Data comes in as frozen values from the floors above and leaves as bytes on AMQP connections; nothing above
this package sees pika or a process id of the broker.

From other packages use `connect`, `login`, `refusals`, `session`, `topology`, `publisher`, `subscription`, `message`,
`request` and `local`; `detached` serves `local` alone.
"""
