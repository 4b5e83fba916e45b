"""All that is said to a message broker, and the private one for a machine without.

Data comes in as frozen values from the floors above and leaves as bytes on AMQP connections and as requests to the
management API; nothing above this package sees pika, an HTTP response or a process id of the broker.

From other packages use `session`, `topology`, `publisher`, `message`, `management` and `local`; `detached` serves
`local` alone.
"""
