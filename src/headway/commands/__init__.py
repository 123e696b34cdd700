"""The commands that are more than one call, one per file, and the options that they share.

    command.py    what every command shares: help, the model's name, variables; environment.py  the variables
    server_urls.py      URLs of servers, as people type them
    options.py    engine and sampling options, declared once; loads the model that they name
    generate.py   headway generate        chat.py      headway chat
    doctor.py     headway doctor          simtest.py   headway simtest
    complete.py   headway complete        collect_env.py  headway collect-env
    server_options.py   the options of every server; remote_options.py   of commands that ask a server
    remote_model.py     a model behind OpenAI's API
    vllm_line.py        a line in vLLM's words; vllm_flags.py   what becomes of each flag; vllm_config.py   in a file
    accuracy.py   headway accuracy        lists.py     options of several values with commas between them

Imports anything of headway; nothing but the command line and the benchmarks imports it.
"""
