-- eICU Collaborative Research Database 2.0, full or demo; https://eicu-crd.mit.edu
-- The visit is the hospital stay. There are no dates, only the year of discharge: the order of the stays of a
-- year is a guess, and the days between them are unknown.
--
-- days placeholder
-- table patient: patientunitstayid integer key, patienthealthsystemstayid integer, uniquepid text, gender text,
--     age text, hospitaldischargeyear integer, hospitaldischargestatus text, unitvisitnumber integer
-- table diagnosis for diagnoses: patientunitstayid integer in patient, diagnosisoffset integer, icd9code code
-- table medication? for medications: patientunitstayid integer in patient, drugordercancelled text,
--     drugname text, drughiclseqno integer?

CREATE VIEW stay AS  -- a row a hospital stay; age and sex do not change within one
SELECT patienthealthsystemstayid AS visit_id, min(uniquepid) AS patient, min(hospitaldischargeyear) AS year,
       max(CASE WHEN age = '' THEN NULL WHEN starts_with(age, '>') THEN 90 ELSE TRY_CAST(age AS INTEGER) END) AS age,
       max(CASE gender WHEN 'Female' THEN 'F' WHEN 'Male' THEN 'M' END) AS sex,
       max(CAST(hospitaldischargestatus = 'Expired' AS INTEGER)) AS died
FROM patient GROUP BY patienthealthsystemstayid;

CREATE VIEW visit AS
SELECT visit_id, patient, age, sex,
       row_number() OVER (PARTITION BY patient ORDER BY year, age, died, visit_id) AS day, day AS moment
FROM stay;

-- A cell of icd9code names one problem in both systems ("401.9, I10"), ICD-9 first. One system of a cell is kept:
-- ICD-9 where it is there. E with three digits is ICD-9 and with two ICD-10; V is ICD-9 in the first place.
CREATE VIEW named AS
SELECT row, visit_id, position, place, code,
       CASE WHEN regexp_full_match(code, '[0-9]{2}\.[0-9]{1,2}') THEN 'ICD9Proc'
            WHEN regexp_full_match(code, '[0-9].*|E[0-9]{3}(\..*)?') THEN 'ICD9CM'
            WHEN starts_with(code, 'V') AND place = 1 THEN 'ICD9CM'
            ELSE 'ICD10CM' END AS system
FROM (
    SELECT d.rowid AS row, patienthealthsystemstayid AS visit_id,
           unitvisitnumber * 100000000 + greatest(diagnosisoffset, 0) AS position,
           unnest(list_transform(string_split(icd9code, ','), lambda cell: upper(trim(cell)))) AS code,
           generate_subscripts(string_split(icd9code, ','), 1) AS place
    FROM diagnosis d JOIN patient USING (patientunitstayid)
) WHERE code <> '';

CREATE VIEW drug_name AS  -- a number of the Hierarchical Ingredient Code List, by its commonest name
SELECT drughiclseqno, arg_max(name, (n, name)) AS name
FROM (SELECT drughiclseqno, upper(drugname) AS name, count(*) AS n FROM medication
      WHERE drugname <> '' AND drughiclseqno IS NOT NULL GROUP BY ALL)
GROUP BY drughiclseqno;

CREATE VIEW event AS
SELECT visit_id, if(system = 'ICD9Proc', 'procedures', 'diagnoses') AS "column", system, code, position,
       row * 100 + place AS row
FROM (SELECT *, bool_or(system = 'ICD9CM') OVER (PARTITION BY row) AS has_icd9 FROM named)
WHERE system <> 'ICD10CM' OR NOT has_icd9
UNION ALL
SELECT patienthealthsystemstayid, 'medications', 'Drug',
       coalesce(name, nullif(drugname, ''), 'HICL ' || drughiclseqno), NULL, m.rowid
FROM medication m JOIN patient USING (patientunitstayid) LEFT JOIN drug_name USING (drughiclseqno)
WHERE drugordercancelled <> 'Yes' AND (drugname <> '' OR drughiclseqno IS NOT NULL);

-- Rows that end the step: of which table, which column, and why.
CREATE VIEW refused AS
SELECT 'patient' AS "table", rowid AS row, 'gender' AS "column",
       'is none of Female, Male, Other, Unknown or empty; fix or remove the row' AS why
FROM patient WHERE gender NOT IN ('Female', 'Male', 'Other', 'Unknown', '')
UNION ALL
SELECT 'patient', rowid, 'age', 'is no age in years; fix or remove the row'
FROM patient WHERE NOT regexp_full_match(age, '(> ?89|[0-9]{1,2})?');

-- What is left aside above, for audit.json.
CREATE VIEW left_out AS
SELECT 'diagnoses' AS what, 'no code in the cell' AS reason, count(*) AS rows FROM diagnosis WHERE trim(icd9code) = ''
UNION ALL
SELECT 'diagnoses', 'ICD-10 name of a problem whose ICD-9 name is kept', count(*)
FROM (SELECT *, bool_or(system = 'ICD9CM') OVER (PARTITION BY row) AS has_icd9 FROM named)
WHERE system = 'ICD10CM' AND has_icd9
UNION ALL
SELECT 'medications', 'order cancelled', count(*) FROM medication WHERE drugordercancelled = 'Yes'
UNION ALL
SELECT 'medications', 'neither a name nor a HICL number', count(*)
FROM medication WHERE drugordercancelled <> 'Yes' AND drugname = '' AND drughiclseqno IS NULL;
