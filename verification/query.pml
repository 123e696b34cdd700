/* A query's way to its answer (src/headway/managers/query.py), checked exhaustively.
 *
 * Callers open a cell at the desk, hand in their query, wait with a timeout that may run out at any moment, and leave.
 * The writer takes queries out of the mailbox. An immediate one it claims, carries out (it allocates something, or its
 * check refuses) and answers; a deferred one it notes, and does the same when its moment comes, if that ever comes; or
 * only tells its caller that it has come, which needs no claim.
 * The desk may be closed at any moment: by a shutdown, while the writer goes on, or because the writer has died, before
 * whatever step, be it between two of those that set an outcome. Each shared step is one operation that CPython carries
 * out whole, and one atomic statement here; between any two of them any other thread may run. Runs have two callers, or
 * one caller and two that close the desk at once.
 *
 * A caller is patient in some runs: its timeout never comes, so that a query that nobody answers is a dead end that the
 * checker finds, and not merely a delay. Only who asks for a moment that never comes cannot be patient.
 *
 * Properties
 *   no invalid end state    no caller waits for ever, above all none that found its query claimed when its time was up
 *   assert in act, leave    what has timed out, or was refused, has allocated nothing and never will
 *   assert in take          nothing is claimed that has an outcome
 *   assert in set_outcome   an outcome is set once
 *   assert in leave, init   every caller is told one; what was allocated is told to it, or else that the engine is dead
 *   assert registered == 0  nothing is kept of callers that left
 *
 * Broken on purpose; the checker must object to each:
 *   -DACT_BEFORE_CLAIM        the writer allocates, then claims
 *   -DLOOK_THEN_TAKE          whether the permit to run is there is looked up, and then it is taken
 *   -DTIMEOUT_LEAVES_IT_OPEN  a caller whose time is up leaves without closing its cell
 *   -DTIMEOUT_DESPITE_CLAIM   a caller whose time is up leaves although its query is claimed
 *   -DDEFERRED_CLAIMED_EARLY  a deferred query is claimed when it is noted, not when its moment comes
 *   -DCLAIMED_ONES_FORGOTTEN  closing the desk fails only the cells that are still open
 *   -DOUTCOME_LEAVES_IT_OPEN  whoever sets an outcome takes the permit to run afterwards
 *   -DLOOK_THEN_SET           whether there is an outcome is looked up, and then it is set
 *   -DONLY_THE_SETTER_RINGS   who finds an outcome set does not ring, though who set it may have died before ringing
 *   -DLOOK_THEN_REGISTER      opening looks whether the desk is closed, and then registers its cell
 *   -DFAIL_THEN_FLAG          closing fails the cells, and then says that the desk is closed
 *   -DNOBODY_FORGETS          callers leave their cells registered
 */

#define CALLERS 2                         /* at most */
#define NOTHING 0
mtype = { VALUE, NO_VALUE, TIMED_OUT, DEAD };  /* NO_VALUE: a refusal, or the moment has come */

chan mailbox = [CALLERS] of { byte };

/* the cells */
bool to_run[CALLERS] = true;              /* the permit to run the query, there until somebody takes it */
mtype outcome[CALLERS];                   /* set once */
bool rung[CALLERS];                       /* the bell its caller sleeps on: rings are kept */

/* the desk */
byte registered = 0;                      /* one bit per cell */
bool closed = false;

/* how this run goes */
byte callers;
bool deferred[CALLERS];
bool moment_comes;
bool dead = false;                        /* the writer is */

/* what has happened */
bool allocated[CALLERS];
mtype told[CALLERS];
byte gone = 0;

#define BIT(cell) (1 << (cell))

/* Somebody tries to get the permit to run; `then` or `otherwise` is what it does next. */
#ifdef LOOK_THEN_TAKE
#define TAKE(cell, then, otherwise) \
    if \
    :: to_run[cell] -> to_run[cell] = false; then \
    :: else -> otherwise \
    fi
#else
#define TAKE(cell, then, otherwise) \
    if \
    :: atomic { to_run[cell] -> to_run[cell] = false; assert(outcome[cell] == NOTHING) }; then \
    :: atomic { else -> skip }; otherwise \
    fi
#endif

inline set_outcome(cell, what) {
#ifdef LOOK_THEN_SET
    if
    :: outcome[cell] == NOTHING -> atomic { assert(outcome[cell] == NOTHING); outcome[cell] = what }
    :: else
    fi;
    rung[cell] = true
#else
    if
    :: atomic { outcome[cell] == NOTHING -> outcome[cell] = what }; rung[cell] = true
#ifdef ONLY_THE_SETTER_RINGS
    :: atomic { else -> skip }
#else
    :: atomic { else -> skip }; rung[cell] = true
#endif
    fi
#endif
}

/* An outcome, from whomever: the cell is closed. */
inline close_cell(cell, what) {
#ifdef OUTCOME_LEAVES_IT_OPEN
    set_outcome(cell, what);
    TAKE(cell, skip, skip)
#else
    TAKE(cell, skip, skip);
    set_outcome(cell, what)
#endif
}

proctype caller(byte me) {
    /* open */
#ifdef LOOK_THEN_REGISTER
    if
    :: closed -> told[me] = DEAD; goto leave
    :: else
    fi;
    registered = registered | BIT(me);
#else
    registered = registered | BIT(me);
    if
    :: closed -> told[me] = DEAD; goto leave
    :: else
    fi;
#endif
    mailbox ! me;
    /* wait */
    if
    :: outcome[me] != NOTHING -> goto hear
    :: moment_comes || !deferred[me] ->   /* patient: sleeps until somebody rings */
        rung[me];
        goto hear
    :: skip                               /* its time is up, now or at any later moment */
    fi;
#ifdef TIMEOUT_LEAVES_IT_OPEN
    told[me] = TIMED_OUT;
    goto leave;
#endif
    TAKE(me, goto close, skip);
#ifdef TIMEOUT_DESPITE_CLAIM
    told[me] = TIMED_OUT;
    goto leave;
#endif
    rung[me];                             /* claimed: sleeps on */
    goto hear;
close:
    set_outcome(me, TIMED_OUT);
hear:
    atomic { assert(outcome[me] != NOTHING); told[me] = outcome[me] };
leave:
    atomic {
        assert(told[me] == VALUE || told[me] == DEAD || !allocated[me]);
#ifndef NOBODY_FORGETS
        registered = registered & ~BIT(me);
#endif
        gone++
    }
}

inline act(cell) {
    atomic {
        assert(told[cell] != TIMED_OUT && told[cell] != NO_VALUE);
        allocated[cell] = true
    }
}

inline answer(cell) {
    if
    :: skip -> act(cell); close_cell(cell, VALUE)
    :: skip -> close_cell(cell, NO_VALUE)
    fi
}

/* Carry a query out, unless its cell is closed. */
inline serve(cell) {
#ifdef ACT_BEFORE_CLAIM
    act(cell);
    TAKE(cell, close_cell(cell, VALUE), skip)
#else
    TAKE(cell, answer(cell), skip)
#endif
}

proctype writer() {
    byte cell = 0, noted = 0;
    {
        do
        :: mailbox ? cell ->
            if
            :: !(registered & BIT(cell))  /* its caller has left */
            :: else ->
                if
                :: deferred[cell] ->
                    noted = noted | BIT(cell);
#ifdef DEFERRED_CLAIMED_EARLY
                    TAKE(cell, skip, noted = noted & ~BIT(cell))
#endif
                :: else -> serve(cell)
                fi
            fi;
            cell = 0
        :: moment_comes && noted ->
            do
            :: noted & BIT(cell) -> break
            :: else -> cell++
            od;
            noted = noted & ~BIT(cell);
#ifdef DEFERRED_CLAIMED_EARLY
            answer(cell);
#else
            if
            :: skip -> serve(cell)
            :: skip -> close_cell(cell, NO_VALUE)
            fi;
#endif
            cell = 0
        :: gone == callers && empty(mailbox) && !(moment_comes && noted) -> break
        od
    } unless { dead }
}

/* Nobody, or a shutdown, or whoever is left when the writer dies. */
proctype closer() {
    byte cell = 0, found;
    if
    :: skip -> goto done
    :: skip
    :: dead = true
    fi;
#ifndef FAIL_THEN_FLAG
    closed = true;
#endif
    found = registered;
    do
    :: found & BIT(cell) ->
        found = found & ~BIT(cell);
#ifdef CLAIMED_ONES_FORGOTTEN
        TAKE(cell, set_outcome(cell, DEAD), skip);
#else
        close_cell(cell, DEAD);
#endif
        cell = 0
    :: found && !(found & BIT(cell)) -> cell++
    :: !found -> break
    od;
#ifdef FAIL_THEN_FLAG
    closed = true;
#endif
done:
    skip
}

init {
    byte i = 0;
    atomic {
        if
        :: callers = CALLERS
        :: callers = 1; run closer()
        fi;
        run closer();
        run writer();
        if
        :: moment_comes = false
        :: moment_comes = true
        fi;
        do
        :: i < callers ->
            if
            :: deferred[i] = false
            :: i == 0 || deferred[i - 1] -> deferred[i] = true  /* the deferred ones first: callers are alike */
            fi;
            run caller(i);
            i++
        :: else -> break
        od
    };
    _nr_pr == 1 ->
    atomic {
        assert(registered == 0);
        i = 0;
        do
        :: i < callers ->
            assert(told[i] == VALUE || told[i] == NO_VALUE || told[i] == TIMED_OUT || told[i] == DEAD);
            assert(told[i] != VALUE || allocated[i]);
            assert(told[i] == VALUE || told[i] == DEAD || !allocated[i]);
            assert(told[i] != DEAD || closed);
            i++
        :: else -> break
        od
    }
}
