"""What crosses between an API process and the engine process, as msgpack over ZeroMQ ipc.

    API process i  -- AddGroup, Abort, Finish, Call, Shutdown -->  engine process      (one PULL socket for all)
    API process i  <-- Ready | LoadFailed, then Accepted, Refused, Step, Status, Returned, Raised --  engine process

The process that started the engine is client 0. Others come by `Attach` and go by `Detach`.

    to_engine.py   the messages to the engine process        to_client.py   the messages to an API process
    launch.py      how an engine process is started          refusals.py    errors that cross
    codec.py       messages as bytes                         uids.py        which API process a uid belongs to
    checks.py      what a message must keep to               wire_errors.py messages that are dropped, and counted

Messages are tagged msgspec structs that carry the records of the core as they are; nothing is ever pickled.
"""
