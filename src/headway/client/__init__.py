"""The API process's side of an engine: conversations to text, tokens to text, requests in progress.

engine_client.py     the engine as an API process sees it     link.py      starts the engine process, talks to it
pending_request.py   one client request in progress
text_limit.py        characters of a prompt           text_pool.py where work on long texts is done
token_processor.py, sequence.py, detokenizer.py   from token ids to answers; also for `LLM`
conversation.py, chat_template.py                 from chat messages to a prompt; also for `LLM`
"""
