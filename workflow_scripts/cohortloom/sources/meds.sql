-- MEDS 0.3 and 0.4 (Medical Event Data Standard): one table of events, a code each.
-- The dialects of MIMIC_IV_MEDS, meds_etl and omop_meds are known here; add others to `pattern`, and to the rows.
--
-- table data files data/**/*.parquet: subject_id integer, time time?, code text, hadm_id? integer?, visit_id? text,
--     end? time?
-- rows data: regexp_matches(code, '^(MEDS_BIRTH$|GENDER//|Gender/|MIMIC_IV_Gender/|HOSPITAL_ADMISSION(//|$)|
--     HOSPITAL_DISCHARGE(//|$)|Visit/|DIAGNOSIS//ICD//|PROCEDURE//ICD//|MEDICATION//START//|MIMIC_IV_Drug/|
--     (ICD9CM|ICD10CM|ICD10|ICD9Proc|ICD10PCS|RxNorm|ATC|NDC)/)')
-- named data: if(contains(code, '/'), split_part(code, '/', 1), 'code without a prefix')

-- What a code is: the first pattern that matches says its column and system; what it captures is the code.
CREATE TABLE pattern (place INTEGER, pattern VARCHAR, "column" VARCHAR, system VARCHAR);
INSERT INTO pattern VALUES
    (1, '^DIAGNOSIS//ICD//9//(.+)$', 'diagnoses', 'ICD9CM'),
    (2, '^DIAGNOSIS//ICD//10//(.+)$', 'diagnoses', 'ICD10CM'),
    (3, '^PROCEDURE//ICD//9//(.+)$', 'procedures', 'ICD9Proc'),
    (4, '^PROCEDURE//ICD//10//(.+)$', 'procedures', 'ICD10PCS'),
    (5, '^MEDICATION//START//(.+)$', 'medications', 'Drug'),
    (6, '^MIMIC_IV_Drug/(.+)$', 'medications', 'Drug'),
    (7, '^ICD9CM//?([^/]+)(//start)?$', 'diagnoses', 'ICD9CM'),
    (8, '^ICD10CM//?([^/]+)(//start)?$', 'diagnoses', 'ICD10CM'),
    (9, '^ICD10//?([^/]+)(//start)?$', 'diagnoses', 'ICD10'),
    (10, '^ICD9Proc//?([^/]+)(//start)?$', 'procedures', 'ICD9Proc'),
    (11, '^ICD10PCS//?([^/]+)(//start)?$', 'procedures', 'ICD10PCS'),
    (12, '^RxNorm//?([^/]+)(//start)?$', 'medications', 'RxNorm'),
    (13, '^ATC//?([^/]+)(//start)?$', 'medications', 'ATC'),
    (14, '^NDC//?([^/]+)(//start)?$', 'medications', 'NDC');

CREATE TABLE known AS  -- each distinct code once; UNK is MIMIC_IV_MEDS' word for a field that is empty
SELECT code AS written, arg_min(p."column", place) AS "column", arg_min(p.system, place) AS system,
       nullif(arg_min(regexp_extract(code, pattern, 1), place), 'UNK') AS code
FROM (SELECT DISTINCT code FROM data) JOIN pattern p ON regexp_matches(code, pattern) GROUP BY written;

CREATE VIEW birth AS
SELECT subject_id, min(time) AS birth FROM data WHERE code = 'MEDS_BIRTH' GROUP BY subject_id;

CREATE VIEW sex AS
SELECT subject_id, if(count(DISTINCT sex) = 1, min(sex), NULL) AS sex
FROM (SELECT subject_id, nullif(upper(regexp_extract(code, '^(?:GENDER//|Gender/|MIMIC_IV_Gender/)([FMfm])', 1)), '') AS sex
      FROM data) GROUP BY subject_id;

-- Visits by their id, where events have one; else from admission to the next discharge. One that ends at the
-- time of the admission belongs to the visit before.
CREATE TABLE stay AS
SELECT subject_id, coalesce(CAST(hadm_id AS VARCHAR), nullif(visit_id, '')) AS name,
       coalesce(min(time) FILTER (WHERE regexp_matches(code, '^(HOSPITAL_ADMISSION|Visit/)')), min(time)) AS start,
       coalesce(max(time) FILTER (WHERE starts_with(code, 'HOSPITAL_DISCHARGE')), max("end"), max(time)) AS finish
FROM data WHERE hadm_id IS NOT NULL OR coalesce(visit_id, '') <> '' GROUP BY ALL;
INSERT INTO stay
SELECT a.subject_id, 'at ' || CAST(a.time AS VARCHAR), a.time,
       coalesce(min(d.time) FILTER (WHERE d.time > a.time), a.time)
FROM (SELECT DISTINCT subject_id, time FROM data WHERE starts_with(code, 'HOSPITAL_ADMISSION')) a
JOIN (SELECT subject_id, time FROM data WHERE starts_with(code, 'HOSPITAL_DISCHARGE')) d
  ON d.subject_id = a.subject_id AND d.time >= a.time
WHERE NOT EXISTS (FROM data WHERE hadm_id IS NOT NULL OR coalesce(visit_id, '') <> '') GROUP BY a.subject_id, a.time;

CREATE TABLE stays AS SELECT rowid AS id, * FROM stay;

CREATE VIEW visit AS
SELECT id AS visit_id, subject_id AS patient, CAST(start AS DATE) AS day, start AS moment,
       if(birth <= start, age_at(birth, start), NULL) AS age, sex
FROM stays LEFT JOIN birth USING (subject_id) LEFT JOIN sex USING (subject_id);

-- The visit of an event: by its id, else the one whose days hold it. Procedures are written at midnight, before
-- the admission of their day: days are compared. Of two visits on one day, the one that ends at the event's time.
-- No other visit holds that day: a procedure of the day before an admission was done in the emergency department,
-- and a drug of the day after a discharge was ordered for the next morning.
CREATE TABLE placed AS
WITH coded AS (
    SELECT d.rowid AS row, subject_id, time, coalesce(CAST(hadm_id AS VARCHAR), nullif(visit_id, '')) AS name,
           k."column", k.system, k.code
    FROM data d JOIN known k ON k.written = d.code
), span AS (
    SELECT id, subject_id, name, start, finish, date_trunc('day', start) AS first, date_trunc('day', finish) AS last
    FROM stays
), candidate AS (
    SELECT c.row, s.id, 1 AS fit, s.start FROM coded c JOIN span s USING (subject_id, name)
    UNION ALL
    SELECT c.row, s.id, CAST(s.finish = c.time AS INTEGER), s.start FROM coded c JOIN span s
      ON s.subject_id = c.subject_id AND c.time >= first AND c.time < last + INTERVAL 1 DAY
    UNION ALL
    SELECT c.row, s.id, -1, s.start FROM coded c JOIN span s
      ON s.subject_id = c.subject_id AND c."column" = 'procedures'
         AND c.time >= first - INTERVAL 1 DAY AND c.time < first
    UNION ALL
    SELECT c.row, s.id, -1, s.start FROM coded c JOIN span s
      ON s.subject_id = c.subject_id AND c."column" = 'medications'
         AND c.time >= last + INTERVAL 1 DAY AND c.time < last + INTERVAL 2 DAY
)
SELECT c.row, c."column", c.system, c.code, v.visit_id, v.fit
FROM coded c LEFT JOIN (SELECT row, arg_max(id, (fit, start)) AS visit_id, max(fit) AS fit FROM candidate GROUP BY row) v
     USING (row);

CREATE VIEW event AS
SELECT visit_id, "column", system, code, NULL AS position, row FROM placed;

-- Rows that end the step: of which table, which column, and why.
CREATE VIEW refused AS
SELECT 'data' AS "table", min(rowid) AS row, 'code' AS "column",
       'and no other event tells visits: none is an admission with a discharge, none has a hadm_id or visit_id' AS why
FROM data HAVING count(*) > 0 AND NOT EXISTS (FROM stay);

-- What is normalised above, for audit.json.
CREATE VIEW normalized AS
SELECT "column" || if("column" = 'procedures', ' of the day before an admission', ' of the day after a discharge')
       || ', put into that visit' AS what, count(*) AS count FROM placed WHERE fit = -1 GROUP BY "column";
