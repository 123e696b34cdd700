/* A query's way to its answer (src/headway/managers/query.py), checked exhaustively.
 *
 * A caller opens a cell at the desk, hands in its query, waits with a timeout that may run out at any moment, and
 * leaves. The writer takes queries out of the mailbox. It claims an immediate query, carries it out (allocates, or
 * refuses) and answers. It notes a deferred query, and does the same when the query's moment comes, if it comes; or it
 * only tells the caller that the moment has come, which needs no claim.
 * The desk may be closed at any moment: by a shutdown while the writer goes on, or because the writer has died. It may
 * die before any step, also between two steps that set an outcome. Each shared step is one operation that CPython
 * carries out whole, and one atomic statement here. Between any two of them any other thread may run. Runs have two
 * callers, or one caller and two threads that close the desk at once.
 *
 * In some runs a caller is patient: its timeout never comes. So a query without an answer is a dead end that the
 * checker finds, and not merely a delay. Only a caller that asks for a moment that never comes cannot be patient.
 *
 * Properties
 *   no invalid end state    no caller waits for ever, not even a caller whose query is claimed when its time is up
 *   assert in act, leave    a query that has timed out, or was refused, has allocated nothing and never will
 *   assert in take          no query with an outcome is claimed
 *   assert in set_outcome   an outcome is set once
 *   assert in leave, init   every caller is told one; it hears of its allocation, or that the engine is dead
 *   assert registered == 0  the cells of callers that left are forgotten
 *
 * Broken on purpose; the checker must object to each:
 *   -DACT_BEFORE_CLAIM        the writer allocates, then claims
 *   -DLOOK_THEN_TAKE          the permit to run is looked for in one step, and taken in another
 *   -DTIMEOUT_LEAVES_IT_OPEN  a caller whose time is up leaves without closing its cell
 *   -DTIMEOUT_DESPITE_CLAIM   a caller whose time is up leaves although its query is claimed
 *   -DDEFERRED_CLAIMED_EARLY  a deferred query is claimed when it is noted, not when its moment comes
 *   -DCLAIMED_CELLS_FORGOTTEN closing the desk fails only the cells that are still open
 *   -DOUTCOME_LEAVES_IT_OPEN  the thread that sets an outcome takes the permit to run afterwards
 *   -DLOOK_THEN_SET           an outcome is looked for in one step, and set in another
 *   -DONLY_THE_SETTER_RINGS   a thread that finds an outcome set does not ring; the setter may have died before it rang
 *   -DLOOK_THEN_REGISTER      opening looks whether the desk is closed, and then registers its cell
 *   -DFAIL_THEN_FLAG          closing fails the cells, and then says that the desk is closed
 *   -DCELLS_STAY_REGISTERED   callers leave their cells registered
 */

#define CALLERS 2                         /* at most */
#define NOTHING 0
mtype = { VALUE, NO_VALUE, TIMED_OUT, DEAD };  /* NO_VALUE: a refusal, or the moment has come */

chan mailbox = [CALLERS] of { byte };

/* the cells */
bool to_run[CALLERS] = true;              /* the permit to run the query, until it is taken */
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

/* A thread tries to take the permit to run. It goes on with `then` if it gets the permit, else with `otherwise`. */
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

/* Set an outcome, by any thread: the cell is closed. */
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
    :: moment_comes || !deferred[me] ->   /* patient: sleeps until the bell rings */
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
#ifndef CELLS_STAY_REGISTERED
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

/* Does nothing, or closes the desk: in a shutdown, or after the death of the writer. */
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
#ifdef CLAIMED_CELLS_FORGOTTEN
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
