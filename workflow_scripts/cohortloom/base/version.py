"""The version of Cohortloom, recorded in every file that it writes."""

VERSION = "0.1.0"
