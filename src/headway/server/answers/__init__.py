"""The way out: from the outputs of the engine to the body of a response, or to the events of a stream.

    generate.py      from a pending request to a response, whole or streamed, in any form (`Face`)
    completions.py, chat.py   the form in each of OpenAI's two APIs of completions: chunks.py, prompt_logprobs.py
    answer_bodies.py    the response bodies
    answer_parsers.py   how tool calls and reasoning are read in an answer, and made to be readable

The forms of the other APIs are in `messages_api/face.py` and `responses_api/face.py`.
"""
