/* Keeps the progress of an unfinished job up to date: asks every two seconds, rests while the tab is hidden,
   asks less often while the server does not answer, and shows the page anew when the job has moved. */
"use strict";
(() => {
  const USUAL = 2000, LONGEST = 60000;
  const box = document.getElementById("progress");
  if (!box || !box.dataset.url) return;
  let wait = USUAL, timer = 0;

  function part(name, text) {
    const element = box.querySelector(`[data-part="${name}"]`);
    if (element && element.textContent !== text) element.textContent = text;
  }

  function show(job) {
    const moved = job.state !== box.dataset.state || String(job.attempt) !== box.dataset.attempt;
    if (moved) return window.location.reload();
    const known = job.done !== null;
    box.hidden = !known;
    if (!known) return schedule();
    const bar = box.querySelector("progress");
    if (job.percent === null) bar.removeAttribute("value");
    else bar.value = job.percent;
    part("percent", job.percent === null ? "" : `${job.percent} %`);
    part("done", String(job.done));
    part("total", job.total === null ? "" : `of ${job.total}`);
    part("unit", job.unit);
    part("message", job.message);
    schedule();
  }

  async function ask() {
    try {
      const answer = await fetch(box.dataset.url, { headers: { Accept: "application/json" }, credentials: "same-origin" });
      if (answer.status === 401 || answer.status === 403 || answer.status === 404) return;
      if (!answer.ok) throw new Error(String(answer.status));
      wait = USUAL;
      show(await answer.json());
    } catch {
      wait = Math.min(wait * 2, LONGEST);
      schedule();
    }
  }

  function schedule() {
    window.clearTimeout(timer);
    if (!document.hidden) timer = window.setTimeout(ask, wait);
  }

  document.addEventListener("visibilitychange", () => {
    window.clearTimeout(timer);
    if (!document.hidden) ask();
  });
  schedule();
})();
