"""The API process's side of an engine: conversations to text, tokens to text, requests in progress.

engine_client.py     the engine as an API process sees it     link.py      starts the engine process, talks to it
engine_life.py       follows it, restarts it when it dies: restart_budget.py, how often; totals.py, its counters
engines.py           what a server sees of its engines         engine_clients.py  several engines: engine_load.py
pending.py           one client request in progress: pending_request.py, at one engine; routed_request.py, which may go
                     to another; joined_request.py, at several
engine_calls.py      calls on the whole engine                 cached_blocks.py  what an engine says of its cache
prompt_encoder.py    texts to token ids: text_limit.py, how long a text may be; text_pool.py, where long work is done
token_processor.py, sequence.py, detokenizer.py, token_pieces.py, stop_scanner.py   from token ids to answers; also for
                                                  `LLM`
conversation.py, chat_template.py                 from chat messages to a prompt; also for `LLM`
"""
