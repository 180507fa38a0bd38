"""The version of Cohortloom that stands in every file it writes."""

VERSION = "0.1.0"
