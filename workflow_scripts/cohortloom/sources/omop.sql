-- OMOP CDM 5.3 and 5.4; https://ohdsi.github.io/CommonDataModel
-- Codes are those of the source (ICD), not the standard concepts, which are several for one code. The system of
-- a code is in table concept (from Athena) alone.
--
-- table person: person_id integer key, gender_concept_id integer, year_of_birth integer, month_of_birth integer?,
--     day_of_birth integer?, birth_datetime? time?
-- table visit_occurrence: visit_occurrence_id integer key, person_id integer in person, visit_start_date time,
--     visit_start_datetime? time?, visit_end_date time?
-- table condition_occurrence for diagnoses: condition_occurrence_id integer, person_id integer in person,
--     condition_start_date time, visit_occurrence_id integer?, condition_source_concept_id integer?
-- table observation? for diagnoses: observation_id integer, person_id integer in person, observation_date time,
--     visit_occurrence_id integer?, observation_source_concept_id integer?
-- table measurement? for diagnoses: measurement_id integer, person_id integer in person, measurement_date time,
--     visit_occurrence_id integer?, measurement_source_concept_id integer?
-- table procedure_occurrence? for procedures: procedure_occurrence_id integer, person_id integer in person,
--     procedure_date time, visit_occurrence_id integer?, procedure_source_concept_id integer?
-- table drug_exposure? for medications: drug_exposure_id integer, person_id integer in person,
--     drug_exposure_start_date time, visit_occurrence_id integer?, drug_concept_id integer?,
--     drug_source_concept_id? integer?, drug_source_value code
-- table concept: concept_id integer key, vocabulary_id text, concept_code code, concept_name? text

-- All that may be a code. The domain of its standard concept decides in which table a code lies: V, Z, E and Y codes
-- are observations, others measurements or drugs. Its own system says which column it belongs to.
CREATE VIEW recorded AS
SELECT person_id, CAST(condition_start_date AS DATE) AS day, visit_occurrence_id, 'diagnoses' AS "from",
       vocabulary_id AS system, concept_code AS code, o.rowid AS row
FROM condition_occurrence o LEFT JOIN concept ON concept_id = condition_source_concept_id
UNION ALL
SELECT person_id, CAST(observation_date AS DATE), visit_occurrence_id, 'observation', vocabulary_id,
       if(vocabulary_id = 'Drug', coalesce(concept_name, concept_code), concept_code), o.rowid
FROM observation o LEFT JOIN concept ON concept_id = observation_source_concept_id
UNION ALL
SELECT person_id, CAST(measurement_date AS DATE), visit_occurrence_id, 'measurement', vocabulary_id, concept_code,
       o.rowid
FROM measurement o LEFT JOIN concept ON concept_id = measurement_source_concept_id
UNION ALL
SELECT person_id, CAST(procedure_date AS DATE), visit_occurrence_id, 'procedures', vocabulary_id, concept_code,
       o.rowid
FROM procedure_occurrence o LEFT JOIN concept ON concept_id = procedure_source_concept_id
UNION ALL
-- Drugs: the source's own code where its system is one of ours, but for NDC, which names packages. Then RxNorm where
-- the standard concept is known, else the NDC, else the name. `Drug` is the vocabulary of our own exports, whose
-- names may be longer than a concept_code.
SELECT person_id, CAST(drug_exposure_start_date AS DATE), visit_occurrence_id, 'medications',
       CASE WHEN s.vocabulary_id IN ('Drug', 'RxNorm', 'ATC', 'ICD9CM', 'ICD10CM', 'ICD10', 'ICD9Proc', 'ICD10PCS')
            THEN s.vocabulary_id
            WHEN t.vocabulary_id = 'RxNorm' THEN 'RxNorm'
            WHEN s.vocabulary_id = 'NDC' OR regexp_full_match(trim(drug_source_value), '[0-9]{9,11}') THEN 'NDC'
            ELSE 'Drug' END AS system,
       CASE WHEN s.vocabulary_id = 'Drug' THEN coalesce(s.concept_name, s.concept_code)
            WHEN system = s.vocabulary_id THEN s.concept_code
            WHEN system = 'RxNorm' THEN t.concept_code
            ELSE drug_source_value END, o.rowid
FROM drug_exposure o LEFT JOIN concept s ON s.concept_id = drug_source_concept_id
LEFT JOIN concept t ON t.concept_id = drug_concept_id;

CREATE VIEW coded AS
SELECT * EXCLUDE "from",
       CASE WHEN system IN ('ICD9CM', 'ICD10CM', 'ICD10') THEN 'diagnoses'
            WHEN system IN ('ICD9Proc', 'ICD10PCS') THEN 'procedures' ELSE 'medications' END AS "column"
FROM recorded
WHERE system IN ('ICD9CM', 'ICD10CM', 'ICD10', 'ICD9Proc', 'ICD10PCS') OR "from" = 'medications'
   OR "from" = 'observation' AND system IN ('Drug', 'NDC');  -- a device, say; an allergy is not coded so

-- The visit of a code: the one it names or, where it names none that there is, one whose dates hold it.
CREATE TABLE placed AS
WITH named AS (
    SELECT c.*, v.visit_occurrence_id AS visit_id
    FROM coded c LEFT JOIN visit_occurrence v USING (visit_occurrence_id)
), by_date AS (
    SELECT n.row, n."column", n.system, min(v.visit_occurrence_id) AS visit_id
    FROM named n JOIN visit_occurrence v
      ON v.person_id = n.person_id AND n.day BETWEEN CAST(v.visit_start_date AS DATE)
         AND CAST(coalesce(v.visit_end_date, v.visit_start_date) AS DATE)
    WHERE n.visit_id IS NULL GROUP BY ALL
)
SELECT "column", system, code, n.row, coalesce(n.visit_id, d.visit_id) AS visit_id,
       n.visit_id IS NULL AND d.visit_id IS NOT NULL AS by_date
FROM named n LEFT JOIN by_date d USING (row, "column", system);

CREATE VIEW event AS
SELECT visit_id, "column", system, code, NULL AS position, row FROM placed;

-- Visits of any kind that hold a code. Without a month of birth the age is reckoned by calendar years.
CREATE VIEW visit AS
SELECT visit_occurrence_id AS visit_id, v.person_id AS patient, CAST(visit_start_date AS DATE) AS day,
       coalesce(visit_start_datetime, visit_start_date) AS moment,
       CASE WHEN birth_datetime IS NOT NULL THEN age_at(birth_datetime, visit_start_date)
            WHEN month_of_birth IS NULL THEN year(visit_start_date) - year_of_birth
            ELSE age_at(make_date(year_of_birth, month_of_birth, coalesce(day_of_birth, 1)), visit_start_date)
       END AS age,
       CASE gender_concept_id WHEN 8507 THEN 'M' WHEN 8532 THEN 'F' END AS sex
FROM visit_occurrence v JOIN person USING (person_id)
WHERE visit_occurrence_id IN (SELECT visit_id FROM placed);

-- Rows that end the step: of which table, which column, and why.
CREATE VIEW refused AS
SELECT 'visit_occurrence' AS "table", v.rowid AS row, 'visit_start_date' AS "column",
       'is before the year of birth; fix or remove the row' AS why
FROM visit_occurrence v JOIN person USING (person_id) WHERE year(visit_start_date) < year_of_birth;

-- What is left aside above, for audit.json.
CREATE VIEW left_out AS
SELECT "from" AS what, 'source concept of ' || coalesce(nullif(system, ''), 'no known vocabulary') AS reason,
       count(*) AS rows
FROM recorded
WHERE "from" <> 'medications'
  AND (system IS NULL OR system NOT IN ('ICD9CM', 'ICD10CM', 'ICD10', 'ICD9Proc', 'ICD10PCS')
                         AND NOT ("from" = 'observation' AND system IN ('Drug', 'NDC'))) GROUP BY ALL
UNION ALL
SELECT 'visits', 'no code', count(*) FROM visit_occurrence
WHERE visit_occurrence_id NOT IN (SELECT visit_id FROM placed WHERE visit_id IS NOT NULL);

CREATE VIEW normalized AS
SELECT 'codes put into a visit by their date' AS what, count(*) AS count FROM placed WHERE by_date;
