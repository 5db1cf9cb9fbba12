-- The history is vacuumed when a fiftieth of it has changed, not a fifth: a large table would be left alone for days.
-- Each start sets this where the role owns the table; the other tables have theirs from the beginning.
DO $$
DECLARE
    wanted CONSTANT text[] := '{autovacuum_vacuum_scale_factor=0.02,autovacuum_vacuum_insert_scale_factor=0.02}';
    changed text;
BEGIN
    SET LOCAL lock_timeout = '1s';
    FOR changed IN
        SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = current_schema() AND c.relname IN ('event', 'message', 'recipient')
            AND pg_has_role(c.relowner, 'USAGE') AND NOT coalesce(c.reloptions, '{}') @> wanted
    LOOP
        EXECUTE format('ALTER TABLE %I SET (%s)', changed, array_to_string(wanted, ', '));
    END LOOP;
END $$;
