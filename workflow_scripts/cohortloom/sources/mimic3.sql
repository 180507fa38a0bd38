-- MIMIC-III 1.4, full or demo, and any hospital's tables of this shape; https://mimic.mit.edu/docs/iii/tables
--
-- table PATIENTS: SUBJECT_ID integer key, GENDER text, DOB time
-- table ADMISSIONS: SUBJECT_ID integer in PATIENTS, HADM_ID integer key, ADMITTIME time
-- table DIAGNOSES_ICD for diagnoses: SUBJECT_ID integer, HADM_ID integer in ADMISSIONS, SEQ_NUM integer?,
--     ICD9_CODE code
-- table PROCEDURES_ICD? for procedures: SUBJECT_ID integer, HADM_ID integer in ADMISSIONS, SEQ_NUM integer?,
--     ICD9_CODE code
-- table PRESCRIPTIONS? for medications: SUBJECT_ID integer, HADM_ID integer in ADMISSIONS, DRUG_TYPE text,
--     DRUG code

-- The birth of patients over 89 is shifted by some 300 years, which age_at() takes for 90.
CREATE VIEW visit AS
SELECT HADM_ID AS visit_id, SUBJECT_ID AS patient, CAST(ADMITTIME AS DATE) AS day, ADMITTIME AS moment,
       age_at(DOB, ADMITTIME) AS age, upper(GENDER) AS sex
FROM ADMISSIONS JOIN PATIENTS USING (SUBJECT_ID);

CREATE VIEW event AS
SELECT HADM_ID AS visit_id, 'diagnoses' AS "column", 'ICD9CM' AS system, ICD9_CODE AS code,
       SEQ_NUM AS position, rowid AS row
FROM DIAGNOSES_ICD
UNION ALL
SELECT HADM_ID, 'procedures', 'ICD9Proc', ICD9_CODE, SEQ_NUM, rowid
FROM PROCEDURES_ICD
UNION ALL
SELECT HADM_ID, 'medications', 'Drug', DRUG, NULL, rowid  -- order lines: a drug counts once a visit
FROM PRESCRIPTIONS WHERE DRUG_TYPE = 'MAIN';  -- BASE is diluent, ADDITIVE is added to it

-- Rows that end the step: of which table, which column, and why.
CREATE VIEW refused AS
SELECT 'PATIENTS' AS "table", rowid AS row, 'GENDER' AS "column", 'is neither F nor M; fix or remove the patient' AS why
FROM PATIENTS WHERE upper(GENDER) NOT IN ('F', 'M')
UNION ALL
SELECT 'ADMISSIONS', a.rowid, 'ADMITTIME', 'is before the patient''s DOB; fix or remove the row'
FROM ADMISSIONS a JOIN PATIENTS USING (SUBJECT_ID) WHERE CAST(ADMITTIME AS DATE) < CAST(DOB AS DATE)
UNION ALL
SELECT 'ADMISSIONS', a.rowid, 'ADMITTIME', 'makes the patient 120 years old or more; DOB is no birth but a filler'
FROM ADMISSIONS a JOIN PATIENTS USING (SUBJECT_ID) WHERE years_between(DOB, ADMITTIME) BETWEEN 120 AND 289
UNION ALL
SELECT 'DIAGNOSES_ICD', d.rowid, 'SUBJECT_ID', 'is not the patient of this admission; give tables of one release'
FROM DIAGNOSES_ICD d JOIN ADMISSIONS a USING (HADM_ID) WHERE d.SUBJECT_ID <> a.SUBJECT_ID
UNION ALL
SELECT 'PROCEDURES_ICD', d.rowid, 'SUBJECT_ID', 'is not the patient of this admission; give tables of one release'
FROM PROCEDURES_ICD d JOIN ADMISSIONS a USING (HADM_ID) WHERE d.SUBJECT_ID <> a.SUBJECT_ID
UNION ALL
SELECT 'PRESCRIPTIONS', d.rowid, 'SUBJECT_ID', 'is not the patient of this admission; give tables of one release'
FROM PRESCRIPTIONS d JOIN ADMISSIONS a USING (HADM_ID) WHERE d.SUBJECT_ID <> a.SUBJECT_ID;

-- What is left aside above, for audit.json.
CREATE VIEW left_out AS
SELECT 'patients' AS what, 'no admission' AS reason, count(*) AS rows
FROM PATIENTS WHERE SUBJECT_ID NOT IN (SELECT SUBJECT_ID FROM ADMISSIONS)
UNION ALL
SELECT 'medications' AS what, 'drug_type is not MAIN' AS reason, count(*) AS rows
FROM PRESCRIPTIONS WHERE DRUG_TYPE <> 'MAIN';

-- What is normalised above, for audit.json.
CREATE VIEW normalized AS
SELECT 'values of GENDER in lower case' AS what, count(*) AS count FROM PATIENTS WHERE GENDER <> upper(GENDER)
UNION ALL
SELECT 'diagnoses without SEQ_NUM set last', count(*) FROM DIAGNOSES_ICD WHERE SEQ_NUM IS NULL AND ICD9_CODE <> '';
