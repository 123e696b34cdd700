"""Programs that run beside this one: they answer, they fail with their last words, and nothing is left of them."""

import os
import sys
import textwrap

import pytest

from headway.bench.child_process import AnsweringProcess, ChildError

# Doubles numbers; says more than it should on standard output; can be made to fail.
DOUBLER = """
    import os, sys
    from headway.bench.answering import answer_questions

    def begin():
        print("noise from an import")

        def answer(question):
            print("noise from an answer")
            if question == "die":
                print("out of memory", file=sys.stderr, flush=True)
                os._exit(9)
            return {"double": 2 * question["number"], "pid": os.getpid()}

        return {"version": "1.2"}, answer

    answer_questions(begin)
"""


def program(script: str) -> AnsweringProcess:
    return AnsweringProcess([sys.executable, "-c", textwrap.dedent(script)])


def test_it_greets_and_answers_in_order_whatever_else_it_prints() -> None:
    with program(DOUBLER) as child:
        assert child.hello == {"version": "1.2"}
        assert child.ask({"number": 2})["double"] == 4
        child.send({"number": 3})
        child.send({"number": 4})
        assert [child.receive()["double"], child.receive()["double"]] == [6, 8]
        assert "noise from an answer" in child.printed()


def test_what_it_raises_arrives_here() -> None:
    with program(DOUBLER) as child, pytest.raises(ChildError, match=r"(?s)the process failed.*KeyError: 'number'"):
        child.ask({})


def test_a_death_is_told_with_its_last_words() -> None:
    with program(DOUBLER) as child:
        with pytest.raises(ChildError, match=r"(?s)exit code 9.*out of memory"):
            child.ask("die")
        with pytest.raises(ChildError, match="exit code 9"):
            child.ask({"number": 1})


def test_one_that_does_not_get_as_far_as_a_greeting_is_an_error() -> None:
    with (
        pytest.raises(ChildError, match=r"(?s)exit code 1.*no such module"),
        program("raise SystemExit('no such module')"),
    ):
        pass


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_nothing_is_left_after_the_block(error: type[BaseException] | None) -> None:
    try:
        with program(DOUBLER) as child:
            pid = child.ask({"number": 1})["pid"]
            if error is not None:
                raise error
    except KeyboardInterrupt:
        pass
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not child.log.exists()
