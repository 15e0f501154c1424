-- From 0.1.0 to 0.2.0: what does not follow from the files of sql/. See README.md here.

-- what follows from sql/ stands here
