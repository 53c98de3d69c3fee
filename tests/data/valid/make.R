# Writes each CSV of a folder again as people do: Rscript make.R FOLDER OUT
args <- commandArgs(trailingOnly = TRUE)
for (path in list.files(args[1], pattern = "\\.csv$", full.names = TRUE)) {
  table <- read.csv(path, colClasses = "character", check.names = FALSE, na.strings = character(0))
  for (name in setdiff(names(table), "id")) table[[name]] <- type.convert(table[[name]], as.is = TRUE, na.strings = character(0))
  write.csv(table, file.path(args[2], sub("\\.csv$", ".r.csv", basename(path))), row.names = FALSE)
}
