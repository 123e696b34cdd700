/* KV that moves from a prefill engine P to a decode engine D (src/headway/scheduler/handlers/transfers.py), checked
 * exhaustively.
 *
 * P computes a prompt in two chunks, in one block. A chunk may be read once its step has succeeded. After the last chunk
 * the block is lent: a lease, named by P's incarnation, the uid and the generation. D gives a request a block, and a
 * connector reads into it what P has. Nothing locks P's block meanwhile. After its last read the connector asks P to
 * consume the lease. Only if P says that the very lease was there is D's block used; else D computes the prompt itself.
 *
 * Each step of P, of D's core, of a connector, and of the network is atomic here; anything may happen between two steps.
 * So a read and the write of what was read are one step, which comes as late as it likes. A message stays in the network
 * for ever: it is delivered at any time, again, or never. The clock and an operator may end a lease at any time, also a
 * lease that was renewed a moment ago (the renewal may be lost): that costs a computation, and no property depends on
 * it. So renewals are not in the model. For the same reason the time-outs of D come at any time. Either side may die
 * once, at any time, and come back. P's uids start anew then; the former incarnation's messages are still under way,
 * and D's reads go on in the blocks of the new one. D forgets all; its clients ask again, with the same references.
 *
 * The two ways to be driven differ in who asks P, and when D may begin to read. Driven by a router, D begins when all is
 * computed; driven by D itself, with the first chunk. Here P may have the prompt before D has, or after, and D may begin
 * with any chunk. So each run of either form is a run of this model. A router may send a reference twice: in some runs
 * both requests of D name the same prompt.
 *
 * Properties
 *   assert in use             D decodes from, or publishes, the KV of the whole prompt of that request and nothing else
 *   assert in write           a connector writes only to the block of its request, or to a block in quarantine for it
 *   assert in take, free      a block has one owner; no block that is lent, or may be written to, gets another
 *   assert in end_request     a request of D ends once
 *   assert in consume         no lease is consumed twice
 *   assert in lend            no lease begins after D has said that it does not want it
 *   assert in init            in the end every request of D has ended, every connector has stopped, every lease and
 *                             every quarantine has ended, and all blocks of both sides are free
 * Every step is taken a bounded number of times, so every run has an end: what must be so in the end comes to be so.
 *
 * Broken on purpose; the checker must object to each:
 *   -DWITHOUT_CONSUME            D trusts its reads
 *   -DCONSUME_BEFORE_LAST_READ   D asks P before it has read all
 *   -DCONSUME_IGNORES_INCARNATION  P looks for the uid and the generation alone
 *   -DCONSUME_IGNORES_GENERATION P looks for the incarnation and the uid alone
 *   -DCONSUME_TWICE_VALID        P says once more that a lease was there after it was consumed
 *   -DANSWER_TO_ANOTHER_ASK      D takes an answer that the same request asked for before D died
 *   -DLOST_ANSWER_COUNTS_AS_VALID  D decodes if it hears nothing
 *   -DPUBLISH_BEFORE_CONSUME     other requests of D find the block once it is read
 *   -DCHUNKS_OF_TWO_GENERATIONS  D reads on after P has begun anew, under the name of the new generation
 *   -DTIMEOUT_FREES_D_BLOCKS     a request of D that ends, or gives up, frees its block while the connector may write
 *   -DDONE_WHILE_WRITING         a connector says that it has stopped while a write is under way
 *   -DSILENT_IF_STOPPED          a connector says nothing of a pull that is not wanted any more
 *   -DDUPLICATE_RECEIVE_DONE_FREES_TWICE  a message that comes twice frees the block twice
 *   -DLEASE_NEVER_EXPIRES        only D ends a lease
 *   -DABORT_KEEPS_THE_LEASE      P forgets a lease that D does not want, and keeps the block
 *   -DUNWANTED_IS_FORGOTTEN      P ignores that D does not want a lease which has not begun
 *   -DLATE_RESULT_LENDS          P lends the block of a prompt that was preempted while its last step was in flight
 */

#define N 2                               /* requests of D, prompts of P, and blocks on each side */
#define FREE 0
#define AWAY 255                          /* this block is not there in this run */

bool small;                               /* how this run goes: one block on each side, and deaths; else two, and none */

typedef Lease {                           /* the name of a lease */
    bit incarnation;
    bit uid;
    bit generation
};

/* P. Prompts by number. A block has the KV of its owner, as far as computed; a free block has foreign KV. */
mtype = { ABSENT, QUEUED, COMPUTING, LENT, CONSUMED, GONE };  /* GONE is enough but for one variant */
mtype prompt[N] = ABSENT;                 /* COMPUTING: its first chunk is there. LENT: both are */
byte lent_block[N];                       /* of a prompt that is COMPUTING or LENT */
bit generation[N];
bit incarnation;
byte p_owner[N];                          /* of each block: FREE, or h + 1 */
bool unwanted[N];                         /* D has sent that it does not want this lease; P may never hear of it */
bool forgotten[N];                        /* P has heard so, and goes on */

/* D's core. Requests by number. */
mtype = { NEW, RECEIVING, WAITING, DECODING, ENDED };
mtype request[N] = NEW;
bit wish[N];                              /* the prompt of each request */
byte block[N];                            /* of a request that is RECEIVING or DECODING */
bool quarantine[N];                       /* its former block, which its connector may write to */
byte d_owner[N];                          /* of each block: FREE, d + 1, or d + 1 + N in quarantine */
bit life;                                 /* of D: how often it has died */

/* D's connectors, one for each request. */
mtype = { OFF, READS, ASKED, STOPPED };
mtype connector[N] = OFF;
byte target[N];                           /* the block that it fills */
Lease name[N];                            /* what it reads */
byte source[N];                           /* the block of P, as far as it has heard */
byte readable[N];                         /* chunks that it may read, as far as it has heard; 0: it has no name */
byte num_read[N];
bool spoilt[N];                           /* a chunk that was read is not of the prompt that is wished for */
mtype = { NOTHING, COME, NOT_COME };
mtype receive_done[N] = NOTHING;          /* what it tells the core */

/* The network: asks and answers, by request and life of D. That P says no is not here: D may always hear nothing. */
#define ASK(d) (d + N * life)
bool ask_sent[2 * N];
Lease asked[2 * N];
bool says_valid[2 * N];

#define UID(h) (h ^ incarnation)          /* the prompts come to the second incarnation in the other order */
#define HAS_BLOCK(h) (prompt[h] == COMPUTING || prompt[h] == LENT)
#define CHUNKS(h) (prompt[h] == LENT -> 2 : 1)
#define IS_CURRENT(a, h) (a.incarnation == incarnation && a.uid == UID(h) && a.generation == generation[h])
/* Whether this chunk of this block of P has the KV of this prompt. */
#define HOLDS(b, chunk, h) (p_owner[b] == h + 1 && chunk < CHUNKS(h))

inline forget(a) {
    a.incarnation = 0;
    a.uid = 0;
    a.generation = 0
}

/* -- P ------------------------------------------------------------------------------------------------------------ */

/* Its first step has succeeded. Which free block it takes makes no difference. */
inline compute(h) {
    lent_block[h] = (p_owner[0] == FREE -> 0 : 1);
    assert(p_owner[lent_block[h]] == FREE);
    assert(prompt[1 - h] != LENT || lent_block[1 - h] != lent_block[h]);
    p_owner[lent_block[h]] = h + 1;
    prompt[h] = COMPUTING
}

inline lend(h) {
    assert(p_owner[lent_block[h]] == h + 1);
    assert(!forgotten[h]);
    prompt[h] = LENT
}

/* Prompt or lease end, and the block is free. */
inline p_end(h) {
    assert(p_owner[lent_block[h]] == h + 1);
    p_owner[lent_block[h]] = FREE;
    lent_block[h] = 0;
    prompt[h] = GONE;
    generation[h] = 0;
    unwanted[h] = false                   /* changes nothing from here on */
}

inline hear_unwanted(h) {
    if
#ifdef UNWANTED_IS_FORGOTTEN
    :: prompt[h] == COMPUTING || prompt[h] == QUEUED -> forgotten[h] = true
#endif
#ifdef ABORT_KEEPS_THE_LEASE
    :: prompt[h] == LENT -> prompt[h] = GONE
#endif
    :: else ->
        if
        :: HAS_BLOCK(h) -> p_end(h)
        :: else -> prompt[h] = GONE; generation[h] = 0
        fi
    fi;
    unwanted[h] = false
}

#define P_HAS_ROOM (p_owner[0] == FREE || p_owner[1] == FREE)

proctype prompt_of_P(byte h) {
end:
    do
    :: d_step { (prompt[h] == ABSENT || prompt[h] == QUEUED) && P_HAS_ROOM -> compute(h) }
    :: d_step { prompt[h] == COMPUTING -> lend(h) }
    :: d_step { prompt[h] == COMPUTING && generation[h] == 0 ->           /* preempted: once is enough */
           p_owner[lent_block[h]] = FREE;
           lent_block[h] = 0;
           generation[h] = 1;
           prompt[h] = QUEUED }
#ifdef LATE_RESULT_LENDS
    :: d_step { prompt[h] == QUEUED -> lend(h) }
#endif
    :: d_step { prompt[h] == COMPUTING -> p_end(h) }                /* a failure */
#ifndef LEASE_NEVER_EXPIRES
    :: d_step { prompt[h] == LENT -> p_end(h) }                     /* by the clock, or revoked for room */
#endif
    :: d_step { unwanted[h] -> hear_unwanted(h) }
    od
}

inline find(a, h) {
    found = prompt[h] != ABSENT && UID(h) == asked[a].uid;
#ifndef CONSUME_IGNORES_GENERATION
    found = found && generation[h] == asked[a].generation;
#endif
#ifndef CONSUME_IGNORES_INCARNATION
    found = found && incarnation == asked[a].incarnation
#endif
}

/* P hears an ask: the lease ends, if it is there. Else it never will be, and the ask changes nothing from here on. */
inline consume(a) {
    valid = false;
    h = 0;
    do
    :: h < N ->
        find(a, h);
        if
        :: found && prompt[h] == LENT ->
            valid = true;
            p_end(h);
#ifdef CONSUME_TWICE_VALID
            generation[h] = asked[a].generation;
            prompt[h] = CONSUMED
        :: found && prompt[h] == CONSUMED -> valid = true
#endif
        :: else
        fi;
        h++
    :: else -> break
    od;
#ifdef ANSWER_TO_ANOTHER_ASK
    says_valid[a] = says_valid[a] || valid;
#else
    says_valid[a] = valid && a == ASK(a % N) && connector[a % N] == ASKED;
#endif
    ask_sent[a] = false;
    forget(asked[a]);
    h = 0;
    valid = false;
    found = false
}

proctype network(byte a) {
    byte h;
    bool valid, found;
end:
    do
    :: d_step { ask_sent[a] -> consume(a) }
    od
}

/* -- D ------------------------------------------------------------------------------------------------------------ */

inline take(d) {
    block[d] = (d_owner[0] == FREE -> 0 : 1);
    assert(d_owner[block[d]] == FREE);
    assert(connector[d] != READS || target[d] != block[d]);
    assert(connector[1 - d] != READS || target[1 - d] != block[d]);
    d_owner[block[d]] = d + 1
}

inline free(b, owner) {
    assert(d_owner[b] == owner);
    d_owner[b] = FREE
}

/* What was read is used, by the request itself or by another that finds it in the cache. */
inline use(d) {
    assert(num_read[d] == 2 && !spoilt[d])
}

inline end_request(d) {
    assert(request[d] != ENDED);
    request[d] = ENDED
}

/* The request leaves its block to the connector, which may write to it. */
inline stop_pull(d) {
#ifdef TIMEOUT_FREES_D_BLOCKS
    free(block[d], d + 1);
#else
    d_owner[block[d]] = d + 1 + N;
    quarantine[d] = true;
#endif
    block[d] = 0
}

/* What the connector has done counts no more. */
inline rest(d) {
#ifndef DONE_WHILE_WRITING
#ifndef DUPLICATE_RECEIVE_DONE_FREES_TWICE
    target[d] = 0;
#endif
    source[d] = 0;
    readable[d] = 0;
    num_read[d] = 0;
    spoilt[d] = false;
#endif
    receive_done[d] = NOT_COME
}

inline hear_receive_done(d) {
    if
    :: quarantine[d] -> quarantine[d] = false; free(target[d], d + 1 + N); rest(d)
    :: else ->
        if
        :: receive_done[d] == COME -> use(d)
        :: else                           /* it is computed here, in the same block */
        fi;
        rest(d);
        request[d] = DECODING
    fi
}

#define D_HAS_ROOM (d_owner[0] == FREE || d_owner[1] == FREE)

proctype request_of_D(byte d) {
end:
    do
    :: d_step { request[d] == NEW && D_HAS_ROOM && (d == 0 || request[0] != NEW) ->   /* they are alike: 0 is first */
           take(d);
           request[d] = RECEIVING;
           connector[d] = READS;
           target[d] = block[d] }
    /* the message stays: a second time it finds neither, and changes nothing */
    :: d_step { receive_done[d] != NOTHING && (quarantine[d] || request[d] == RECEIVING) -> hear_receive_done(d) }
#ifdef DUPLICATE_RECEIVE_DONE_FREES_TWICE
    :: d_step { receive_done[d] != NOTHING && !quarantine[d] && request[d] != RECEIVING -> d_owner[target[d]] = FREE }
#endif
    :: d_step { request[d] == RECEIVING -> stop_pull(d); request[d] = WAITING }  /* it has not come in time */
    :: d_step { request[d] == WAITING && D_HAS_ROOM -> take(d); request[d] = DECODING }
    :: d_step { request[d] == DECODING -> free(block[d], d + 1); block[d] = 0; end_request(d) }
    :: d_step { request[d] == RECEIVING -> stop_pull(d); end_request(d) }        /* aborted */
    :: d_step { request[d] == WAITING -> end_request(d) }
    od
}

/* The connector has stopped, and writes no more. It tells the core so; and P, if it does not want the lease any more. */
inline stop(d, what) {
    if
    :: what == NOT_COME && connector[d] == READS && readable[d] > 0 && name[d].incarnation == incarnation &&
       (HAS_BLOCK(wish[d]) || prompt[wish[d]] == QUEUED) -> unwanted[wish[d]] = true
    :: else                               /* P would ignore it */
    fi;
#ifdef SILENT_IF_STOPPED
    if
    :: !quarantine[d] -> receive_done[d] = what
    :: else
    fi;
#else
    receive_done[d] = what;
#endif
    connector[d] = STOPPED;
    forget(name[d]);
#ifndef ANSWER_TO_ANOTHER_ASK
    says_valid[ASK(d)] = false
#endif
}

/* Read a chunk of P's block, as it is now, into D's. */
inline write(d) {
    assert((d_owner[target[d]] == d + 1 && request[d] == RECEIVING) || d_owner[target[d]] == d + 1 + N);
    spoilt[d] = spoilt[d] || !HOLDS(source[d], num_read[d], wish[d]);
    num_read[d]++
}

inline ask(d) {
#ifdef PUBLISH_BEFORE_CONSUME
    if
    :: request[d] == RECEIVING -> use(d)
    :: else
    fi;
#endif
#ifdef WITHOUT_CONSUME
    stop(d, COME)
#else
    asked[ASK(d)].incarnation = name[d].incarnation;
    asked[ASK(d)].uid = name[d].uid;
    asked[ASK(d)].generation = name[d].generation;
    ask_sent[ASK(d)] = true;
    forget(name[d]);
#ifndef CONSUME_BEFORE_LAST_READ
    source[d] = 0;
    readable[d] = 0;
#endif
    connector[d] = ASKED
#endif
}

proctype connector_of_D(byte d) {
end:
    do
    /* it hears of a prompt, or of a new lease of it, and begins anew */
    :: d_step { connector[d] == READS && HAS_BLOCK(wish[d]) &&
                (readable[d] == 0 || !IS_CURRENT(name[d], wish[d])) ->
           name[d].incarnation = incarnation;
           name[d].uid = UID(wish[d]);
           name[d].generation = generation[wish[d]];
           source[d] = lent_block[wish[d]];
           readable[d] = CHUNKS(wish[d]);
#ifndef CHUNKS_OF_TWO_GENERATIONS
           spoilt[d] = false;
           num_read[d] = 0
#endif
       }
    /* it hears that more is readable; that it is of another lease it may overlook, as its ask names the first */
    :: d_step { connector[d] == READS && HAS_BLOCK(wish[d]) && readable[d] > 0 && num_read[d] < 2 &&
                (readable[d] != CHUNKS(wish[d]) || source[d] != lent_block[wish[d]]) ->
           source[d] = lent_block[wish[d]];
           readable[d] = CHUNKS(wish[d]) }
    :: d_step { connector[d] == READS && num_read[d] < readable[d] -> write(d) }
    :: d_step { connector[d] == READS && num_read[d] == 2 -> ask(d) }
#ifdef CONSUME_BEFORE_LAST_READ
    :: d_step { connector[d] == READS && num_read[d] == 1 && readable[d] == 2 -> ask(d) }
#endif
    /* P cannot be reached, or the core does not want the KV any more */
    :: d_step { connector[d] == READS -> stop(d, NOT_COME) }
    :: d_step { connector[d] == ASKED && says_valid[ASK(d)] ->
#ifdef CONSUME_BEFORE_LAST_READ
           if
           :: num_read[d] == 1 -> write(d)
           :: else
           fi;
#endif
           stop(d, COME) }
#ifdef ANSWER_TO_ANOTHER_ASK
    :: d_step { connector[d] == ASKED && says_valid[d] -> stop(d, COME) }
#endif
    /* P says that the lease was not there, or nothing is heard of P */
#ifdef LOST_ANSWER_COUNTS_AS_VALID
    :: d_step { connector[d] == ASKED -> stop(d, COME) }
#else
    :: d_step { connector[d] == ASKED -> stop(d, NOT_COME) }
#endif
#ifdef DONE_WHILE_WRITING
    :: d_step { connector[d] == STOPPED && num_read[d] < readable[d] -> write(d) }
#endif
    od
}

/* -- Deaths ------------------------------------------------------------------------------------------------------- */

/* All is gone but what the other side and the network have. */
inline p_dies() {
    i = 0;
    do
    :: i < N ->
        prompt[i] = ABSENT;
        lent_block[i] = 0;
        generation[i] = 0;
        unwanted[i] = false;
        forgotten[i] = false;
        p_owner[i] = (i == 0 -> FREE : AWAY);
        i++
    :: else -> break
    od;
    i = 0;
    incarnation = 1
}

/* The clients of the requests that had not ended ask again. A write to the memory of a dead process reaches nothing. */
inline d_dies() {
    i = 0;
    do
    :: i < N ->
        if
        :: request[i] != ENDED -> request[i] = NEW
        :: else
        fi;
        block[i] = 0;
        quarantine[i] = false;
        d_owner[i] = (i == 0 -> FREE : AWAY);
        connector[i] = OFF;
        target[i] = 0;
        forget(name[i]);
        source[i] = 0;
        readable[i] = 0;
        num_read[i] = 0;
        spoilt[i] = false;
        receive_done[i] = NOTHING;
#ifndef ANSWER_TO_ANOTHER_ASK
        says_valid[i] = false;
#endif
        i++
    :: else -> break
    od;
    i = 0;
    life = 1
}

proctype deaths() {
    byte i;
end:
    do
    :: d_step { small && incarnation == 0 -> p_dies() }
    :: d_step { small && life == 0 -> d_dies() }
    od
}

init {
    atomic {
        if
        :: wish[1] = 0
        :: wish[1] = 1
        fi;
        if
        :: small = true; p_owner[1] = AWAY; d_owner[1] = AWAY
        :: small = false
        fi;
        run prompt_of_P(0); run prompt_of_P(1);
        run request_of_D(0); run request_of_D(1);
        run connector_of_D(0); run connector_of_D(1);
        run network(0); run network(1); run network(2); run network(3);
        run deaths()
    };
    timeout;                              /* until nothing more can happen */
    assert(request[0] == ENDED && request[1] == ENDED);
    assert(connector[0] != READS && connector[0] != ASKED && connector[1] != READS && connector[1] != ASKED);
    assert(!quarantine[0] && !quarantine[1] && d_owner[0] == FREE && (small || d_owner[1] == FREE));
    assert(!HAS_BLOCK(0) && !HAS_BLOCK(1) && p_owner[0] == FREE && (small || p_owner[1] == FREE))
}
