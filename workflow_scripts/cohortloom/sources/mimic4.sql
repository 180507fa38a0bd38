-- MIMIC-IV 2.x and 3.x, module hosp, full or demo; https://mimic.mit.edu/docs/iv/modules/hosp
--
-- folder hosp
-- table patients: subject_id integer key, gender text, anchor_age integer, anchor_year integer
-- table admissions: subject_id integer in patients, hadm_id integer key, admittime time
-- table diagnoses_icd for diagnoses: hadm_id integer in admissions, seq_num integer?, icd_code code,
--     icd_version integer
-- table procedures_icd? for procedures: hadm_id integer in admissions, seq_num integer?, icd_code code,
--     icd_version integer
-- table prescriptions? for medications: hadm_id integer? in admissions, drug_type text, drug code

-- There is no birth date. Ages over 89 are written as 91 in the anchor year; they are capped later.
CREATE VIEW visit AS
SELECT hadm_id AS visit_id, subject_id AS patient, CAST(admittime AS DATE) AS day, admittime AS moment,
       anchor_age + year(admittime) - anchor_year AS age, upper(gender) AS sex
FROM admissions JOIN patients USING (subject_id);

-- Only icd_version tells the system: the change of 2015-10-01 is hidden by the shift of the dates.
CREATE VIEW event AS
SELECT hadm_id AS visit_id, 'diagnoses' AS "column", if(icd_version = 9, 'ICD9CM', 'ICD10CM') AS system,
       icd_code AS code, seq_num AS position, rowid AS row
FROM diagnoses_icd
UNION ALL
SELECT hadm_id, 'procedures', if(icd_version = 9, 'ICD9Proc', 'ICD10PCS'), icd_code, seq_num, rowid
FROM procedures_icd
UNION ALL
SELECT hadm_id, 'medications', 'Drug', drug, NULL, rowid  -- order lines: a drug counts once a visit
FROM prescriptions WHERE drug_type = 'MAIN';  -- BASE is diluent, ADDITIVE is added to it

-- Rows that end the step: of which table, which column, and why.
CREATE VIEW refused AS
SELECT 'patients' AS "table", rowid AS row, 'gender' AS "column",
       'is neither F nor M; fix or remove the patient' AS why
FROM patients WHERE upper(gender) NOT IN ('F', 'M')
UNION ALL
SELECT 'admissions', a.rowid, 'admittime', 'is before the year of birth that anchor_age and anchor_year give'
FROM admissions a JOIN patients USING (subject_id) WHERE anchor_age + year(admittime) < anchor_year
UNION ALL
SELECT 'diagnoses_icd', rowid, 'icd_version', 'is neither 9 nor 10; fix or remove the row'
FROM diagnoses_icd WHERE icd_version NOT IN (9, 10)
UNION ALL
SELECT 'procedures_icd', rowid, 'icd_version', 'is neither 9 nor 10; fix or remove the row'
FROM procedures_icd WHERE icd_version NOT IN (9, 10);

-- What is left aside above, for audit.json.
CREATE VIEW left_out AS
SELECT 'patients' AS what, 'no admission' AS reason, count(*) AS rows
FROM patients WHERE subject_id NOT IN (SELECT subject_id FROM admissions)
UNION ALL
SELECT 'medications' AS what, 'drug_type is ' || drug_type || ', not MAIN' AS reason, count(*) AS rows
FROM prescriptions WHERE drug_type <> 'MAIN' GROUP BY ALL;
