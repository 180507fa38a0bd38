-- National Hospital Discharge Survey 2010, public-use file: fixed width, a discharge a line, no link of persons.
-- Layout: NHDS 2010 public-use data file documentation, National Center for Health Statistics.
--
-- table NHDS fixed NHDS10.PU.TXT 149: -year 1-2, newborn 3 text, age_unit 4 text, age 5-6 text, sex 7 text,
--     -race 8, -marital_status 9, -discharge_month 10-11, -discharge_status 12, -days_of_care 13-16,
--     -same_day 17, -region 18, -beds 19, -ownership 20, -weight 21-25, -century 26-27,
--     diagnoses 28-102 code, procedures 103-134 code, -payer 135-136, -second_payer 137-138, -drg 139-141,
--     -admission_type 142, -admission_source 143-144, -admitting_diagnosis 145-149

-- Age units: 1 years, 2 months, 3 days. Every discharge is a patient of its own.
CREATE VIEW visit AS
SELECT rowid AS visit_id,
       'nhds2010-' || lpad(CAST(rowid + 1 AS VARCHAR), (SELECT length(CAST(count(*) AS VARCHAR)) FROM NHDS)::INT, '0')
           AS patient,
       0 AS day, 0 AS moment,
       CASE WHEN newborn = '1' THEN 0
            WHEN age_unit = '1' THEN CAST(age AS INTEGER)
            WHEN age_unit = '2' THEN least(CAST(age AS INTEGER) * 365.25 / 12, 365) / 365.25
            ELSE least(CAST(age AS INTEGER), 365) / 365.25 END AS age,
       if(sex = '1', 'M', 'F') AS sex
FROM NHDS;

-- 15 fields of diagnoses, 8 of procedures; a short code is filled with dashes.
CREATE VIEW event AS
SELECT * FROM (
    SELECT rowid AS visit_id, 'diagnoses' AS "column", 'ICD9CM' AS system,
           rtrim(substr(diagnoses, CAST(5 * place + 1 AS BIGINT), 5), '- ') AS code, place AS position, rowid AS row
    FROM NHDS, range(15) AS places(place)
    UNION ALL
    SELECT rowid, 'procedures', 'ICD9Proc',
           rtrim(substr(procedures, CAST(4 * place + 1 AS BIGINT), 4), '- '), place, rowid
    FROM NHDS, range(8) AS places(place)
) WHERE code <> '';

-- Lines that end the step: which column, and why.
CREATE VIEW refused AS
SELECT 'NHDS' AS "table", rowid AS row, 'sex' AS "column", 'is neither 1 (M) nor 2 (F); fix or remove the line' AS why
FROM NHDS WHERE sex NOT IN ('1', '2')
UNION ALL
SELECT 'NHDS', rowid, 'age_unit', 'is none of 1, 2, 3; fix or remove the line'
FROM NHDS WHERE age_unit NOT IN ('1', '2', '3')
UNION ALL
SELECT 'NHDS', rowid, 'age', 'is not a number of two digits; fix or remove the line'
FROM NHDS WHERE NOT regexp_full_match(age, '[0-9]{1,2}');
