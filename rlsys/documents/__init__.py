"""Contents of the result files. The commands construct and write these models; `rlsys report` reads them.

core        files, estimates, paired differences
evaluation  eval.json of `rlsys eval`
runs        summary.json of `rlsys train` and `rlsys rft`, ladder.json of `rlsys ladder`
progress    progress.json of a run
scalar      report.json of `rlsys meta-rm`

Optional fields are those that not every command, or not every version, writes: a field that was not set is not in the file.
"""
