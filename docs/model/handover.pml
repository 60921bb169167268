/*
 * The hand-over of a split migration: who may run the VM, and who may change
 * what the memory servers hold.  docs/split-migration.md explains it; checked
 * by tests/model/test-handover.
 *
 * A source, one or two destinations one after the other (each with a session
 * of its own), and two servers of which server 0 is the arbiter.  What may
 * happen, in any order and at any point:
 *
 *   - a message takes any time; a client stops waiting for its answer, which
 *     may have been lost before or after it was applied, and sends it again,
 *     on the same connection or on a new one
 *   - a server crashes and comes back with its record; what was under way on
 *     its connections is gone.  Server 0 goes for good
 *   - the main link is cut with the stream's last byte on it
 *   - source and destinations crash, with messages under way; they quit; the
 *     user cancels, and says cont on either side
 *
 * What is asserted:
 *
 *   ONE     never two sides run
 *   WRITE   nothing reaches a server that the sender may not do there (so the
 *           server's refusal is a second line), nor while the other side may
 *           still win
 *   DROP    no space is dropped while the other side may still win
 *   SURE    what the arbiter decided is never refused by the other server
 *   SOME    when no fault is to come and nothing is under way: a side runs,
 *           or the arbiter is unreachable, or the side that it decided for is
 *           dead (the source's side, until a destination has all)
 *
 * A connection is FIFO.  A new one of a client takes the old one's place: what
 * the old one had under way is not applied any more (docs/protocol.md, lanes).
 *
 *   FAULTS=n     so many faults; without: any number (SOME isn't checked then)
 *   DESTS=n      destinations
 *   BREAK_...    breaks a rule; the checker has to find that
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */
#ifndef DESTS
#define DESTS 1
#endif
#ifdef FAULTS
#define fault (faults > 0)
#define spend faults--
byte faults = FAULTS;
#else
#define fault true
#define spend skip
#endif

/* (Spin's own nempty() doesn't go into expressions.) */
#define some(channel) (len(channel) > 0)
#define answerable(channel) (len(channel) < 1)

/* Requests: docs/protocol.md. */
mtype = { STORE, CLOSE, OFFER, RECLAIM, RESIGN, COMMIT };

/* A space on a server: the source's; offered; the heir's; no more. */
mtype = { PLAIN, OFFERED, COMMITTED, DROPPED };

/* Source: RUNS; its VM stopped: DRAINS (STOREs), OFFERS, SENT (the stream's
 * last byte), ASKS the arbiter; knows that it LOST; is DEAD.
 * Destination: LOADS; READY (it has all, and is stopped); ASKS; RUNS... */
mtype = { RUNS, DRAINS, OFFERS, SENT, ASKS, LOST, DEAD, LOADS, READY };

/* Connections: the source's to server i, and destination k's. */
#define LS(i) (i)
#define LD(k, i) (2 + 2 * (k) + (i))
#define LANES (2 + 2 * DESTS)

chan req[LANES] = [2] of { mtype, byte };  /* request, session */
chan rep[LANES] = [1] of { mtype, bit };   /* request, done or refused */
mtype awaited[LANES];                      /* 0: nothing */
bit lost[LANES];                           /* a new one is to be made */
#ifdef BREAK_PREDECESSOR
mtype late[LANES];
byte late_session[LANES];
#endif

mtype own[2] = PLAIN;
byte session[2];
bit resigned[2];
bit arbiter_gone;

mtype src = RUNS;
byte current;              /* session of this migration; DESTS: none is left */
bit may_s[2] = true;       /* the source may change server i's space */
bit offered[2];

mtype dst[DESTS] = LOADS;
bit asked[DESTS];          /* a COMMIT was sent that nobody answered */
bit may_d[2 * DESTS];
chan stream[DESTS] = [1] of { bit };       /* its last byte */
bit shut_error[DESTS];     /* the destination said that it will never run */

/* A destination that may become the owner, whatever the source does. */
#define may_win(k) (session[0] == k && (own[0] == COMMITTED || \
    own[0] == OFFERED && (dst[k] == READY || dst[k] == ASKS || \
                          dst[k] == LOADS && some(stream[k]))))
#if DESTS == 1
#define another_may_win may_win(0)
#define another_runs (dst[0] == RUNS)
#else
#define another_may_win (may_win(0) || may_win(1))
#define another_runs (dst[0] == RUNS || dst[1] == RUNS)
#endif

/* --- Servers --- */

inline serve_source(i, op, s)
{
    if
    :: op == STORE ->
        assert(own[i] == PLAIN && !another_may_win);    /* WRITE */
        ok = 1
    :: op == CLOSE ->
        assert(own[i] == PLAIN && !another_may_win);    /* DROP */
        own[i] = DROPPED;
        ok = 1
    :: op == OFFER && own[i] == PLAIN ->
        own[i] = OFFERED;
        session[i] = s;
        ok = 1
    :: op == RECLAIM && own[i] == OFFERED && session[i] == s ->
        own[i] = PLAIN;
        ok = 1
    :: op == RESIGN && own[i] == OFFERED && session[i] == s ->
        resigned[i] = 1;
        ok = 1
    :: else ->
        /* Again, or too late. */
        ok = op == OFFER && own[i] == OFFERED && session[i] == s ||
             op == RECLAIM && own[i] == PLAIN
    fi
}

#ifdef BREAK_SESSION
#define SESSION(i, k) true
#else
#define SESSION(i, k) (session[i] == k)
#endif

inline serve_destination(i, k, op)
{
    if
    :: op == COMMIT && own[i] == OFFERED && SESSION(i, k) ->
        assert(i != 0 || src != RUNS);                  /* ONE */
        own[i] = COMMITTED;
        ok = 1
    :: op == STORE ->
        assert(own[i] == COMMITTED && session[i] == k); /* WRITE */
        ok = 1
    :: op == CLOSE && session[i] == k &&
       (own[i] == COMMITTED || own[i] == OFFERED && resigned[i]) ->
        assert(own[i] == COMMITTED || src == DEAD);     /* DROP */
        own[i] = DROPPED;
        ok = 1
    :: else ->
#ifdef BREAK_IDEMPOTENT
        ok = 0
#else
        ok = op == COMMIT && own[i] == COMMITTED && session[i] == k
#endif
    fi
}

#define serves(i) (i != 0 || !arbiter_gone)

proctype Server(byte i)
{
    mtype op;
    byte s, k;
    bit ok;

end:
    do
    :: d_step {
        serves(i) && some(req[LS(i)]) && answerable(rep[LS(i)]) ->
        req[LS(i)]?op,s;
        serve_source(i, op, s);
        if
        :: src != DEAD -> rep[LS(i)]!op,ok
        :: else
        fi;
        op = 0; s = 0; ok = 0
    }
    :: d_step {
        serves(i) && some(req[LD(0, i)]) && answerable(rep[LD(0, i)]) ->
        k = 0;
        req[LD(0, i)]?op,s;
        serve_destination(i, 0, op);
        if
        :: dst[0] != DEAD -> rep[LD(0, i)]!op,ok
        :: else
        fi;
        op = 0; s = 0; ok = 0
    }
#if DESTS > 1
    :: d_step {
        serves(i) && some(req[LD(1, i)]) && answerable(rep[LD(1, i)]) ->
        req[LD(1, i)]?op,s;
        serve_destination(i, 1, op);
        if
        :: dst[1] != DEAD -> rep[LD(1, i)]!op,ok
        :: else
        fi;
        op = 0; s = 0; ok = 0
    }
#endif
#ifdef BREAK_PREDECESSOR
    :: d_step {
        serves(i) && late[LS(i)] != 0 ->
        serve_source(i, late[LS(i)], late_session[LS(i)]);
        late[LS(i)] = 0; late_session[LS(i)] = 0; ok = 0
    }
#endif
    :: d_step {   /* it crashes and is back, with its record */
        fault && serves(i) && (some(req[LS(i)]) || some(rep[LS(i)]) ||
                               some(req[LD(0, i)]) ||
                               some(rep[LD(0, i)])) ->
        spend;
        k = 0;
        do
        :: k < LANES ->
            do
            :: some(req[k]) && k % 2 == i -> req[k]?_,_
            :: some(rep[k]) && k % 2 == i -> rep[k]?_,_
            :: else -> break
            od;
            k++
        :: else -> break
        od;
        k = 0
    }
    :: d_step { fault && i == 0 && !arbiter_gone -> spend; arbiter_gone = 1 }
    od
}

/* --- Clients --- */

/* Behind what is under way on the connection, or on a new one. */
inline request(l, op, s)
{
    if
    :: lost[l] || (len(req[l]) == 2) ->
        do
#ifdef BREAK_PREDECESSOR
        :: some(req[l]) -> req[l]?late[l],late_session[l]
#else
        :: some(req[l]) -> req[l]?_,_
#endif
        :: some(rep[l]) -> rep[l]?_,_
        :: else -> break
        od;
        lost[l] = 0
    :: else
    fi;
    req[l]!op,s;
    awaited[l] = op
}

/* A client stops waiting: nothing comes any more, or for too long. */
#define in_vain(l) (awaited[l] != 0 && !some(req[l]) && !some(rep[l]))
#define gives_up(l) (awaited[l] != 0 && awaited[l] != STORE && \
                     (fault || in_vain(l)))
#define repeats_store(l) (awaited[l] == STORE && (fault || in_vain(l)))

/* In the same order: what is awaited is not awaited any more. */
inline give_up(l)
{
    if
    :: in_vain(l)
    :: else -> spend
    fi;
    awaited[l] = 0;
    if
    :: true            /* the connection stays */
    :: lost[l] = 1
    fi
}

/* What was not answered is sent again. */
inline repeat_store(l)
{
    if
    :: in_vain(l)
    :: else -> spend
    fi;
    lost[l] = 1;
    request(l, STORE, 0)
}

/* --- Source --- */

#ifdef BREAK_RETRY
#define UNSURE LOST    /* takes no answer for a no */
#else
#define UNSURE SENT
#endif

#define idle(l) (awaited[l] == 0)

inline source_runs()
{
    assert(!another_runs && own[0] != COMMITTED);       /* ONE */
    src = RUNS;
    current++;
    offered[0] = 0;
    offered[1] = 0
}

inline source_answer(i)
{
    rep[LS(i)]?op,ok;
    if
    :: op != awaited[LS(i)] -> skip    /* to what it gave up */
    :: else ->
        awaited[LS(i)] = 0;
        if
        :: op == STORE || op == OFFER -> assert(ok);
            offered[i] = op == OFFER && src == OFFERS
        :: op == RECLAIM && src == ASKS ->
            if
            :: ok -> may_s[0] = 1; source_runs()
            :: else -> src = LOST
            fi
        :: op == RECLAIM && src == RUNS ->
            assert(ok);                                 /* SURE */
            may_s[i] = 1
        :: else -> skip
        fi
    fi;
    op = 0; ok = 0
}

/* Those of one server. */
#define SOURCE(i) \
    :: atomic { some(rep[LS(i)]) && src != DEAD -> source_answer(i) } \
    :: atomic { src != DEAD && gives_up(LS(i)) -> give_up(LS(i)); \
        if :: src == ASKS && i == 0 -> src = UNSURE :: else fi } \
    :: atomic { src != DEAD && repeats_store(LS(i)) -> repeat_store(LS(i)) } \
    :: atomic { src == RUNS && may_s[i] && idle(LS(i)) -> \
        request(LS(i), STORE, 0) } \
    /* Told before anything is written to it. */ \
    :: atomic { src == RUNS && !may_s[i] && idle(LS(i)) -> \
        request(LS(i), RECLAIM, current - 1) } \
    :: atomic { src == OFFERS && !offered[i] && idle(LS(i)) -> \
        may_s[i] = 0; request(LS(i), OFFER, current) } \
    /* It shuts down with the space its own, or cut off. */ \
    :: atomic { fault && src == RUNS && may_s[i] && idle(LS(i)) -> \
        spend; request(LS(i), CLOSE, 0); src = DEAD; awaited[LS(i)] = 0 }

proctype Source()
{
    mtype op;
    bit ok;

end:
    do
    SOURCE(0)
    SOURCE(1)
    :: atomic { src == RUNS && current < DESTS && may_s[0] && may_s[1] ->
        src = DRAINS }
    :: atomic { src == DRAINS && idle(LS(0)) && idle(LS(1)) -> src = OFFERS }
    /* Cancelled, or something failed, before the stream's last byte. */
    :: atomic { fault && (src == DRAINS || src == OFFERS) ->
        spend; source_runs() }
    :: atomic { src == OFFERS && offered[0] &&
#ifndef BREAK_OFFER
                offered[1] &&
#endif
                true ->
        src = SENT; stream[current]!1 }
    /* The destination will not. */
    :: atomic { src == SENT && shut_error[current] && idle(LS(0)) ->
        source_runs() }
    /* The stream failed; a cancel; or cont. */
    :: atomic { src == SENT && idle(LS(0)) ->
#ifdef BREAK_UNASKED
        source_runs()
#else
        src = ASKS; request(LS(0), RECLAIM, current)
#endif
    }
    /* It quits, after its migration, with the spaces left to the heir. */
    :: atomic { fault && src == SENT ->
        spend;
#ifdef BREAK_QUIT
        request(LS(0), CLOSE, current); request(LS(1), CLOSE, current);
#else
        request(LS(0), RESIGN, current); request(LS(1), RESIGN, current);
#endif
        awaited[0] = 0; awaited[1] = 0; src = DEAD }
    :: atomic { fault && src != DEAD ->    /* crashes */
        spend; src = DEAD; awaited[0] = 0; awaited[1] = 0 }
    od
}

/* --- Destination --- */

inline destination_runs(k)
{
    assert(src != RUNS && !another_runs);               /* ONE */
    dst[k] = RUNS
}

inline destination_answer(k, i)
{
    rep[LD(k, i)]?op,ok;
    if
    :: op != awaited[LD(k, i)] -> skip
    :: else ->
        awaited[LD(k, i)] = 0;
        if
        :: op == STORE -> assert(ok)
        :: op == COMMIT && dst[k] == ASKS ->
            asked[k] = 0;
            if
            :: ok -> may_d[2 * k] = 1; destination_runs(k)
            :: else -> dst[k] = LOST
            fi
        :: op == COMMIT && dst[k] == RUNS ->
            assert(ok);                                 /* SURE */
            may_d[2 * k + i] = 1
        :: else -> skip
        fi
    fi;
    op = 0; ok = 0
}

#define DESTINATION(k, i) \
    :: atomic { some(rep[LD(k, i)]) && dst[k] != DEAD -> \
        destination_answer(k, i) } \
    :: atomic { dst[k] != DEAD && gives_up(LD(k, i)) -> give_up(LD(k, i)); \
        if :: dst[k] == ASKS && i == 0 -> dst[k] = READY :: else fi } \
    :: atomic { dst[k] != DEAD && repeats_store(LD(k, i)) -> \
        repeat_store(LD(k, i)) } \
    :: atomic { dst[k] == RUNS && MAY_WRITE(k, i) && idle(LD(k, i)) -> \
        request(LD(k, i), STORE, 0) } \
    :: atomic { dst[k] == RUNS && !may_d[2 * k + i] && idle(LD(k, i)) -> \
        request(LD(k, i), COMMIT, k) } \
    /* Shuts down, with or without having run. */ \
    :: atomic { fault && dst[k] != DEAD && dst[k] != ASKS && \
                idle(LD(k, i)) && (dst[k] != RUNS || may_d[2 * k + i]) -> \
        spend; request(LD(k, i), CLOSE, k); dst[k] = DEAD; \
        awaited[LD(k, 0)] = 0; awaited[LD(k, 1)] = 0 }

#ifdef BREAK_WRITE
#define MAY_WRITE(k, i) true
#else
#define MAY_WRITE(k, i) may_d[2 * (k) + i]
#endif

proctype Destination(byte k)
{
    mtype op;
    bit ok;

end:
    do
    DESTINATION(k, 0)
    DESTINATION(k, 1)
    :: atomic { dst[k] == LOADS && some(stream[k]) ->
        stream[k]?_; dst[k] = READY }
    :: atomic { fault && some(stream[k]) -> spend; stream[k]?_ }
    /* Loading fails: it says so, and ends.  Not once it has asked. */
    :: atomic { fault && (dst[k] == LOADS || dst[k] == READY) &&
#ifndef BREAK_SHUT
                !asked[k] &&
#endif
                true ->
        spend; shut_error[k] = 1; dst[k] = DEAD }
    /* At the end of the stream, or at cont. */
    :: atomic { dst[k] == READY && idle(LD(k, 0)) ->
#ifdef BREAK_UNCOMMITTED
        destination_runs(k)
#else
        dst[k] = ASKS; asked[k] = 1; request(LD(k, 0), COMMIT, k)
#endif
    }
#ifdef BREAK_EARLY
    :: atomic { dst[k] == LOADS && own[0] == OFFERED && session[0] == k ->
        dst[k] = ASKS; asked[k] = 1; request(LD(k, 0), COMMIT, k) }
#endif
    :: atomic { fault && dst[k] != DEAD ->
        spend; dst[k] = DEAD;
        awaited[LD(k, 0)] = 0; awaited[LD(k, 1)] = 0 }
    od
}

/* --- SOME --- */

#define source_decided (own[0] == PLAIN || own[0] == OFFERED && \
    (dst[session[0]] == DEAD || dst[session[0]] == LOADS))

proctype Monitor()
{
    bit calm;

end:
    do
#ifdef FAULTS
    :: faults > 0 -> faults = 0
#endif
    :: !calm && timeout ->
        assert(src == RUNS || another_runs || arbiter_gone ||
               own[0] == DROPPED ||
               own[0] == COMMITTED && dst[session[0]] == DEAD ||
               source_decided && src == DEAD);
        calm = 1
    od
}

init {
    atomic {
        run Server(0);
        run Server(1);
        run Source();
        run Destination(0);
#if DESTS > 1
        run Destination(1);
#endif
        run Monitor()
    }
}
