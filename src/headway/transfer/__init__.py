"""KV between two engines: P lends the blocks of a prompt, and D reads them into blocks of its own.

This package moves bytes and keeps to the leases. It must not know torch, the state of a scheduler, or HTTP: of the core
it has two records (`Pull` and `Lending`), and it talks to a manager through the protocols
`LeaseManager` and `TransferManager`.
Nothing is ever pickled.

    layout.py         KVLayout: what two engines must have in common, and where the bytes of a block lie
    memory.py         the KV memory of an engine on a CPU, and the mapping of a peer's
    model_digest.py   tells models apart
    reference.py      the sealed name of what P lends            handover.py     it among `kv_transfer_params`
    messages.py       what two connectors say to each other      channel.py      frames on a socket
    handshake.py      who may talk to whom

    lender.py         P: what is lent, without threads and sockets
    server.py         P: its threads and sockets
    receiver.py       D: jobs and heartbeats of one peer, without threads and sockets
    peer.py           D: the thread of one peer
    reader.py         one way to read blocks of a peer; its kinds: shared_memory.py, nixl.py and tcp.py
    connector.py      both sides, as the writer of an engine sees them
    counts.py         what was moved, in numbers

Two rules make it safe. D hands a block back (`receive_done`) only when no reader can write to it any more; a time-out
closes readers, and blocks come back when these have stopped. And D uses what it has read only if P says after the last
read that the lease was there all the time; so nothing fences P's blocks, and P takes them back whenever it likes.
"""
