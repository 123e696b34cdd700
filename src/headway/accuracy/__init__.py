"""What `headway accuracy` compares: every token of the engine with what transformers' `generate` gives.

    subject.py       a model under test, and the engine's answers under one setting
    reference.py     what transformers says
    tiny_models.py   random models, one for each thing that decoders do differently

Imports the engine by its face, `headway.LLM`, and no scheduler; the command and the tests import it.
"""
