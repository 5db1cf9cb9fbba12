-- Everything that one group commit writes: new messages, results of claims, counters and the clock.
-- Each table's values are arrays with one element for each row. One whose values are all the same has
-- it once, or none for NULL: unnest() fills it up with NULL (CommitRows). The transaction fails with the
-- logarithm of zero in another session than that of $95, the process of this one, which a pooler has
-- mixed up; and with a division by zero where a result is of a claim that has ended. With results, it
-- returns the bodies that may not be needed any more.
--
-- Only the parts that a commit needs are sent, since each part takes time without a row as well.
--
-- Another node may have taken over a claim in the meantime: epoch and owner are compared once more
-- where its entry changes, and what has changed is counted.
--
-- A row is looked for by its whole key in a LATERAL query with OFFSET 0, and then changed by its
-- ctid, so that no statistics lead to another plan (tests/unit/store/spool/postgres/test_plans.py).
-- always:
WITH own AS MATERIALIZED (SELECT pg_current_xact_id() AS id), new_event AS (
    INSERT INTO event (message_id, sequence, step, at_us, detail)
    SELECT message_id, nextval('event_number'), step, at_us, detail
    FROM own CROSS JOIN unnest($53::text[], $54::integer[], $55::bigint[], $56::text[]) AS k (
        message_id, step, at_us, detail)
), counted AS (
    INSERT INTO counter SELECT $91, $92, * FROM unnest($83::text[], $84::bigint[])
)
-- accepted:
, new_message AS (
    INSERT INTO message
    SELECT
        id, coalesce(reverse_path, ($2::text[])[1]), coalesce(source, ($3::text[])[1]),
        coalesce(trusted, ($4::integer[])[1]), received_us, expires_us, size,
        coalesce(account, ($8::text[])[1]), coalesce(submission_id, ($9::text[])[1]),
        coalesce(envid, ($10::text[])[1]), coalesce(ret, ($11::text[])[1]),
        coalesce(smtputf8, ($12::integer[])[1]), coalesce(eight_bit, ($13::integer[])[1]),
        coalesce(client, ($14::text[])[1]), message_id, subject, coalesce(extra, ($17::text[])[1])
    FROM unnest(
        $1::text[], $2::text[], $3::text[], $4::integer[], $5::bigint[], $6::bigint[], $7::bigint[],
        $8::text[], $9::text[], $10::text[], $11::text[], $12::integer[], $13::integer[],
        $14::text[], $15::text[], $16::text[], $17::text[]
    ) AS k (
        id, reverse_path, source, trusted, received_us, expires_us, size, account, submission_id,
        envid, ret, smtputf8, eight_bit, client, message_id, subject, extra)
), new_content AS (
    INSERT INTO content
    SELECT
        message_id, coalesce(number, ($19::integer[])[1]), size, data, header,
        coalesce(body, ($23::text[])[1]), coalesce(eight_bit, ($24::integer[])[1]), crc32
    FROM unnest(
        $18::text[], $19::integer[], $20::bigint[], $21::bytea[], $22::bytea[], $23::text[],
        $24::integer[], $25::bigint[]
    ) AS k (
        message_id, number, size, data, header, body, eight_bit, crc32)
), new_entry AS (
    INSERT INTO entry (
        message_id, number, next_hop, content_id, state, claimed, due_us, retry_us, lane, sender,
        warn_us, priority, extra, owner, store, attempts, epoch, cause, cause_attempts)
    SELECT
        message_id, coalesce(number, ($27::integer[])[1]), coalesce(next_hop, ($28::text[])[1]),
        coalesce(content_id, ($29::integer[])[1]), coalesce(state, ($30::text[])[1]),
        coalesce(claimed, ($31::integer[])[1]), due_us, retry_us,
        coalesce(lane, ($34::integer[])[1]), coalesce(sender, ($35::bigint[])[1]), warn_us,
        coalesce(priority, ($37::integer[])[1]), coalesce(extra, ($38::text[])[1]),
        coalesce(owner, ($39::bigint[])[1]), coalesce(store, ($40::integer[])[1]), 0, 1, '', 0
    FROM unnest(
        $26::text[], $27::integer[], $28::text[], $29::integer[], $30::text[], $31::integer[],
        $32::bigint[], $33::bigint[], $34::integer[], $35::bigint[], $36::bigint[], $37::integer[],
        $38::text[], $39::bigint[], $40::integer[]
    ) AS k (
        message_id, number, next_hop, content_id, state, claimed, due_us, retry_us, lane, sender,
        warn_us, priority, extra, owner, store)
), new_recipient AS (
    INSERT INTO recipient (
        message_id, entry, number, address, notify, orcpt, state, status, reply, added_by,
        successors, next_hop, owed_report)
    SELECT
        message_id, coalesce(entry, ($42::integer[])[1]), coalesce(number, ($43::integer[])[1]),
        address, coalesce(notify, ($45::text[])[1]), coalesce(orcpt, ($46::text[])[1]),
        coalesce(state, ($47::text[])[1]), coalesce(status, ($48::text[])[1]),
        coalesce(reply, ($49::text[])[1]), coalesce(added_by, ($50::text[])[1]),
        coalesce(successors, ($51::text[])[1]), coalesce(next_hop, ($52::text[])[1]), ''
    FROM unnest(
        $41::text[], $42::integer[], $43::integer[], $44::text[], $45::text[], $46::text[],
        $47::text[], $48::text[], $49::text[], $50::text[], $51::text[], $52::text[]
    ) AS k (
        message_id, entry, number, address, notify, orcpt, state, status, reply, added_by,
        successors, next_hop)
)
-- submitted:
, new_submission AS (
    INSERT INTO submission SELECT * FROM unnest($57::text[], $58::text[], $59::bigint[])
)
-- results:
, claimed AS MATERIALIZED (
    SELECT k.*, e.place
    FROM (
        SELECT
            message_id, coalesce(number, ($61::integer[])[1]) AS number,
            coalesce(epoch, ($62::bigint[])[1]) AS epoch,
            coalesce(owner, ($63::bigint[])[1]) AS owner,
            coalesce(content_id, ($64::integer[])[1]) AS content_id,
            coalesce(ends, ($65::integer[])[1]) AS ends, coalesce(state, ($66::text[])[1]) AS state,
            coalesce(attempts, ($67::integer[])[1]) AS attempts, due_us, retry_us,
            coalesce(lane, ($70::integer[])[1]) AS lane, coalesce(cause, ($71::text[])[1]) AS cause,
            coalesce(cause_attempts, ($72::integer[])[1]) AS cause_attempts, warn_us,
            coalesce(ended_with, ($74::text[])[1]) AS ended_with
        FROM unnest(
            $60::text[], $61::integer[], $62::bigint[], $63::bigint[], $64::integer[],
            $65::integer[], $66::text[], $67::integer[], $68::bigint[], $69::bigint[],
            $70::integer[], $71::text[], $72::integer[], $73::bigint[], $74::text[]
        ) AS k (
            message_id, number, epoch, owner, content_id, ends, state, attempts, due_us, retry_us,
            lane, cause, cause_attempts, warn_us, ended_with)
    ) k
    CROSS JOIN LATERAL (
        SELECT ctid AS place FROM entry
        WHERE message_id = k.message_id AND number = k.number AND epoch = k.epoch
            AND claimed = 1 AND owner = k.owner
        OFFSET 0
    ) e
), ended AS (
    DELETE FROM entry e USING claimed k
    WHERE e.ctid = k.place AND k.ends = 1 AND e.epoch = k.epoch AND e.owner = k.owner
    RETURNING 1
), going_on AS (
    UPDATE entry e SET owner = k.owner FROM claimed k
    WHERE e.ctid = k.place AND k.ends = 2 AND e.epoch = k.epoch AND e.owner = k.owner
    RETURNING 1
), waiting AS (
    UPDATE entry e SET
        state = k.state, attempts = k.attempts, claimed = 0, owner = 0, epoch = e.epoch + 1,
        lane = k.lane, cause = k.cause, -- an order that waits for nothing else: it stays due
        due_us = CASE WHEN e.extra LIKE '%"order":{%' AND e.extra NOT LIKE '%"sent_us":%'
            THEN e.due_us ELSE k.due_us END,
        retry_us = CASE WHEN e.state = 'held' THEN e.retry_us ELSE k.retry_us END,
        cause_attempts = k.cause_attempts,
        warn_us = CASE WHEN e.warn_us IS NULL THEN NULL ELSE k.warn_us END
    FROM claimed k
    WHERE e.ctid = k.place AND k.ends = 0 AND e.epoch = k.epoch AND e.owner = k.owner
    RETURNING 1
), changed_recipient AS MATERIALIZED (
    SELECT k.*, r.place
    FROM (
        SELECT
            coalesce(state, ($75::text[])[1]) AS state,
            coalesce(status, ($76::text[])[1]) AS status,
            coalesce(reply, ($77::text[])[1]) AS reply,
            coalesce(remote_id, ($78::text[])[1]) AS remote_id, message_id,
            coalesce(entry, ($80::integer[])[1]) AS entry,
            coalesce(number, ($81::integer[])[1]) AS number,
            coalesce(next_hop, ($82::text[])[1]) AS next_hop
        FROM unnest(
            $75::text[], $76::text[], $77::text[], $78::text[], $79::text[], $80::integer[],
            $81::integer[], $82::text[]
        ) AS k (
            state, status, reply, remote_id, message_id, entry, number, next_hop)
    ) k
    CROSS JOIN LATERAL (
        SELECT ctid AS place FROM recipient
        WHERE message_id = k.message_id AND entry = k.entry AND number = k.number
            AND state IN ('queued', 'deferred', 'held', 'captured')
        OFFSET 0
    ) r
), ended_recipient AS (
    UPDATE recipient r SET
        state = k.state, status = k.status, reply = k.reply, remote_id = k.remote_id,
        next_hop = k.next_hop
    FROM changed_recipient k WHERE r.ctid = k.place
), unneeded AS MATERIALIZED (
    SELECT c.place
    FROM claimed k
    CROSS JOIN LATERAL (
        SELECT ctid AS place FROM content
        WHERE message_id = k.message_id AND number = k.content_id
        OFFSET 0
    ) c
    WHERE k.ends = 1 AND NOT EXISTS (
        SELECT FROM (
            SELECT message_id, number, content_id FROM entry WHERE message_id = k.message_id OFFSET 0
        ) other
        WHERE other.content_id = k.content_id
            AND other.number <> ALL (string_to_array(k.ended_with, ',')::integer[])
    )
), dropped AS (
    DELETE FROM content c USING unneeded k WHERE c.ctid = k.place RETURNING c.body
)
-- alive:
, alive AS (
    DELETE FROM suppressed WHERE address = ANY ($94::text[]) AND who = ''
)
-- noted:
, noted AS (
    INSERT INTO clock SELECT $93, * FROM unnest(
        $85::bigint[], $86::bigint[], $87::bigint[], $88::text[], $89::bigint[], $90::bigint[])
    ON CONFLICT (node) DO UPDATE SET
        steady_us = excluded.steady_us, wall_us = excluded.wall_us,
        elapsed_us = excluded.elapsed_us, boot_id = excluded.boot_id,
        doubtful_us = excluded.doubtful_us, doubt_ends_us = excluded.doubt_ends_us
)
-- always:
SELECT ln(CASE WHEN pg_backend_pid() = $95 THEN 1 ELSE 0 END), 1
-- results:
    / CASE WHEN (SELECT count(*) FROM ended) + (SELECT count(*) FROM waiting)
        + (SELECT count(*) FROM going_on) = cardinality($60::text[]) THEN 1 ELSE 0 END,
    ARRAY(SELECT body FROM dropped WHERE body <> '')
