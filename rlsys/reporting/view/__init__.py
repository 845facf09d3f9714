"""The live viewer of judgements (`rlsys view`): a local page over the tables of runs, which may still be written. In reading order:

tables      the Parquet tables of a run folder (judged: JSON Lines of `rlsys judge` and `rlsys eval`), read a few rows at a time
groups      one summary per group, the filters, and the comparison of two tables on the same rows
viewer      questions of the page -> JSON documents
server      HTTP
static/     the page: plain HTML, CSS and JavaScript modules, without a build step

Texts of runs are untrusted. The viewer replaces control characters; the page inserts texts as text nodes only and is served with a policy
that allows no other script.
"""
