"""The fields of requests: what bodies may ask for, and what becomes of fields that are not served.

protocol.py      the bodies of OpenAI's completions, made of these fields: prompt_fields.py, sampling_fields.py,
                 structured_output_fields.py, tool_fields.py, reasoning_fields.py, token_id_fields.py
chat_asking.py   the bodies of other APIs, which become chat completions
refused.py       fields that are refused with a reason     unknown_fields.py   fields that are not known here
field_descriptions.py   what each field is, in a sentence
"""
