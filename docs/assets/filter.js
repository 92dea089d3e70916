// Buttons above the table of methods: show the rows whose "tasks" or "needs" cell names what was chosen.
document$.subscribe(function () {
  const place = document.getElementById("method-filter")
  if (!place || place.childElementCount) return
  const table = place.parentElement.querySelector("table")
  const rows = Array.from(table.tBodies[0].rows)
  const choices = ["all", "classification", "multilabel", "regression"]
  const count = document.createElement("span")
  count.setAttribute("aria-live", "polite")
  function choose(choice) {
    let shown = 0
    for (const row of rows) {
      row.hidden = choice !== "all" && !row.cells[2].textContent.includes(choice)
      shown += row.hidden ? 0 : 1
    }
    for (const button of place.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", button.textContent === choice)
    }
    count.textContent = `${shown} of ${rows.length} methods`
  }
  for (const choice of choices) {
    const button = document.createElement("button")
    button.type = "button"
    button.textContent = choice
    button.addEventListener("click", () => choose(choice))
    place.append(button)
  }
  place.append(count)
  choose("all")
})
