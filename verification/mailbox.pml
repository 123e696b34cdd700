/* The mailbox's sleep and wake (src/headway/managers/mailbox.py), checked exhaustively.
 *
 * A producer appends to a lane. If the writer has announced that it will sleep, the producer then rings the bell. The
 * writer takes messages; when the lanes are empty it announces sleep, looks once more, and sleeps until the bell rings.
 * Every shared step is one operation that CPython carries out whole, so each is one atomic statement here. Between any
 * two of them any other thread may run.
 *
 * The real writer sleeps with a cap, and looks again even without a bell. Here the cap is infinite: a lost wake-up is a
 * dead end that the checker finds, and not merely a delay.
 *
 * Properties
 *   no invalid end state   the writer never sleeps for ever while a message is in a lane
 *   assert taken == ...    every message is taken exactly once
 *   assert in order        commands of one producer are taken in the order they were put
 *
 * Broken on purpose; the checker must object to each:
 *   -DNO_SECOND_LOOK       the writer announces and sleeps without looking again
 *   -DLOOK_FIRST           the writer looks, then announces
 *   -DRING_FIRST           a producer looks for the announcement before it appends
 */

#define PRODUCERS 2
#define COMMANDS  2                       /* of each producer */
#define TOTAL     (PRODUCERS * COMMANDS + 1)  /* and one result of the device */

byte commands = 0;                        /* messages in the command lane */
byte results = 0;                         /* messages in the result lane */
chan lane = [PRODUCERS * COMMANDS] of { byte, byte };  /* the command lane itself: producer, number */
byte bells = 0;                           /* rings not taken yet (a SimpleQueue keeps them) */
bool sleeping = false;                    /* the writer's announcement */
byte taken = 0;
byte last[PRODUCERS];                     /* number of the last command taken of each producer */

inline ring() {
    if
    :: sleeping -> bells++
    :: else
    fi
}

proctype producer(byte me) {
    byte number = 1;
    do
    :: number <= COMMANDS ->
#ifdef RING_FIRST
        bool announced;
        atomic { announced = sleeping }
        atomic { lane ! me, number; commands++ }
        if
        :: announced -> atomic { bells++ }
        :: else
        fi;
#else
        atomic { lane ! me, number; commands++ }
        atomic { ring() }
#endif
        number++
    :: else -> break
    od
}

proctype device() {
#ifdef RING_FIRST
    bool announced;
    atomic { announced = sleeping }
    atomic { results++ }
    if
    :: announced -> atomic { bells++ }
    :: else
    fi
#else
    atomic { results++ }
    atomic { ring() }
#endif
}

active proctype writer() {
    byte who, number;
    do
    :: taken < TOTAL ->
        /* take: every result first, then a command */
        if
        :: atomic { results > 0 -> results--; taken++ }
        :: atomic { results == 0 && commands > 0 ->
               lane ? who, number; commands--; taken++;
               assert(number == last[who] + 1);
               last[who] = number }
        :: atomic { results == 0 && commands == 0 -> skip };
            /* wait */
#ifdef LOOK_FIRST
            if
            :: atomic { results + commands > 0 -> skip }
            :: atomic { results + commands == 0 -> skip };
                sleeping = true;
                atomic { bells > 0 -> bells-- }
            fi;
#else
            sleeping = true;
#ifndef NO_SECOND_LOOK
            if
            :: atomic { results + commands > 0 -> skip }   /* something came: do not sleep */
            :: atomic { results + commands == 0 -> skip };
                atomic { bells > 0 -> bells-- }            /* blocks until the bell rings */
            fi;
#else
            atomic { bells > 0 -> bells-- }
#endif
#endif
            sleeping = false;
            do                                             /* one ring is enough */
            :: atomic { bells > 0 -> bells-- }
            :: atomic { bells == 0 -> break }
            od
        fi
    :: else -> break
    od;
    assert(taken == TOTAL && commands == 0 && results == 0)
}

init {
    atomic {
        byte i = 0;
        do
        :: i < PRODUCERS -> run producer(i); i++
        :: else -> break
        od;
        run device()
    }
}
