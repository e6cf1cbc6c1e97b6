'use strict';
// The page: which runs are shown, what the charts draw, what a reader chose, and, in a watched run, loading again.

const data = JSON.parse(by('data').textContent);
const OWN_KEY = 'chosen by the reader';
const DRAWN = new Set(data.charts.flatMap(chart => chart.series.map(series => series.key)).concat('adapter/version'));
const STORE = `rl_engine.report ${location.pathname}`;
const state = {
  shown: data.runs.map(run => run.name), theme: '', span: 1, log: {}, wide: [], metric: data.keys.find(name => !DRAWN.has(name)) ?? data.keys[0], allAdapters: false,
  run: 0, step: 'all', verdict: 'all', text: '', problem: '', groupStep: -1, scroll: 0,
  ...JSON.parse(sessionStorage.getItem(STORE) ?? '{}'),
};
if (state.run >= data.runs.length) state.run = 0;

const isShown = index => state.shown.includes(data.runs[index].name);

/** The points of one metric of a run; a step without it has none. */
function pointsOf(metrics, {key, low, high}, factor) {
  const points = [];
  (metrics[key] ?? []).forEach((value, index) => {
    if (value === null) return;
    const point = {step: metrics.step[index], value: value * factor};
    if (low) Object.assign(point, {low: metrics[low][index] * factor, high: metrics[high][index] * factor});
    points.push(point);
  });
  return points;
}

/** One run: a colour for each metric. Several: a colour for each run, a dash for each metric. */
function curvesOf(chart) {
  const several = data.runs.length > 1;
  const parts = several && chart.total ? [chart.total] : chart.series;
  const factor = chart.unit.startsWith('%') ? 100 : 1;
  const curves = [];
  data.runs.forEach((run, place) => {
    if (!isShown(place)) return;
    parts.forEach((series, index) => {
      const points = pointsOf(run.metrics, series, factor);
      const label = several ? (parts.length > 1 ? `${run.name}, ${series.label}` : run.name) : series.label;
      if (points.length)
        curves.push({label, colour: colour(several ? place : index), dash: several ? DASHES[index % DASHES.length] : '', points});
    });
  });
  return chart.total && !several ? stacked(curves) : curves;
}

/** The one value of curves that never move: worth a sentence, not a chart. Undefined where there is more to see. */
function constant(curves) {
  const [low, high] = extent(curves);
  return low === high && curves.some(curve => curve.points.length > 1) ? low : undefined;
}

function ownChart() {
  return {name: OWN_KEY, title: '', unit: '', series: [{key: state.metric, label: state.metric}], from_zero: false};
}

function redraw(figure) {
  const chart = figure.chart ?? ownChart();
  const curves = curvesOf(chart);
  figure.hidden = Boolean(figure.chart) && (curves.length === 0 || constant(curves) !== undefined);
  figure.querySelector('svg.plot')?.remove();
  if (figure.hidden || !curves.length) return;
  const log = state.log[chart.name] ?? chart.log ?? false;
  const button = figure.querySelector('.log');
  button.hidden = !(log || chart.log || mayBeLog(curves));
  button.setAttribute('aria-pressed', log);
  figure.classList.toggle('wide', state.wide.includes(chart.name));
  figure.querySelector('.legend').replaceChildren(...legendOf(chart, curves));
  draw(figure, chart, curves, {log, span: state.span, steps: stepsShown()});
}

/** The first and the last step of what is shown: all charts share their axis. */
function stepsShown() {
  const steps = data.runs.filter((run, index) => isShown(index)).flatMap(run => [run.metrics.step?.[0], run.metrics.step?.at(-1)]);
  const known = steps.filter(step => step !== undefined);
  return [Math.min(...known), Math.max(...known)];
}

/** The runs' colours stand in the page's head; a chart explains what is particular to it. */
function legendOf(chart, curves) {
  if (data.runs.length === 1)
    return curves.length > 1 ? curves.map(curve => element('span', {}, key(curve), ` ${curve.label}`)) : [];
  if (chart.total) return [element('span', {textContent: 'all phases together'})];
  if (chart.series.length === 1) return [];
  return chart.series.map((series, index) => element('span', {}, key({colour: 'var(--ink)', dash: DASHES[index % DASHES.length]}), ` ${series.label}`));
}

function makeFigure(chart) {
  const title = element('figcaption', {});
  if (chart) title.append(element('b', {textContent: chart.title}), element('span', {className: 'unit', textContent: chart.unit}));
  else title.append(metricSelect());
  const name = chart?.name ?? OWN_KEY;
  const toggle = (label, className, hint, change) => element('button', {type: 'button', className, textContent: label, title: hint,
    onclick: () => { change(); save(); redraw(figure); }});
  title.append(element('span', {className: 'buttons'},
    toggle('log', 'log', 'Axis by powers of ten', () => { state.log[name] = !(state.log[name] ?? chart?.log ?? false); }),
    toggle('⤢', 'enlarge', 'Large or small', () => {
      state.wide = state.wide.includes(name) ? state.wide.filter(other => other !== name) : [...state.wide, name];
    })));
  const figure = element('figure', {chart}, title, element('div', {className: 'legend'}), element('div', {className: 'tip', hidden: true}));
  figure.dataset.chart = name;
  return figure;
}

function metricSelect() {
  const select = element('select', {title: 'Any metric', onchange: () => { state.metric = select.value; save(); redraw(select.closest('figure')); }});
  select.append(...data.keys.map(name => new Option(name, name)));
  if (!data.keys.includes(state.metric)) state.metric = data.keys[0];
  select.value = state.metric;
  return element('label', {}, element('b', {textContent: 'Any metric '}), select);
}

function redrawAll() {
  document.querySelectorAll('#charts figure').forEach(redraw);
  const still = data.charts.map(chart => [chart, constant(curvesOf(chart))]).filter(([, value]) => value !== undefined);
  by('constant').textContent = still.length === 0 ? '' : 'The same at every step: ' +
    still.map(([chart, value]) => `${chart.title} ${Number(value.toPrecision(4))} ${chart.unit}`).join('; ') + '.';
}

/** Hide what belongs to a run that is switched off. */
function showRuns() {
  document.querySelectorAll('[data-run]').forEach(part => { part.hidden = !isShown(Number(part.dataset.run)); });
  document.querySelectorAll('#runs input').forEach(box => { box.checked = isShown(Number(box.value)); });
}

function showTheme() {
  document.documentElement.style.colorScheme = state.theme || 'light dark';
}

function showAdapters() {
  by('adapters').classList.toggle('all', state.allAdapters);
  document.querySelectorAll('.all-adapters').forEach(box => { box.checked = state.allAdapters; });
}

function browse() {
  save();
  showCompletions(data, state, group => {
    Object.assign(state, {problem: group.problem_id, groupStep: group.step});
    // A step of the history outside the filters: the filters give way.
    if (state.step !== 'all') state.step = String(group.step);
    if (!matching([group], state).length) Object.assign(state, {verdict: 'all', text: ''});
    browse();
  });
}

function save() {
  sessionStorage.setItem(STORE, JSON.stringify(state));
}

function listen() {
  document.querySelectorAll('#runs input').forEach(box => box.addEventListener('change', () => {
    state.shown = data.runs.map(run => run.name).filter((name, index) => by('runs').querySelectorAll('input')[index].checked);
    save();
    showRuns();
    redrawAll();
  }));
  by('smoothing').onchange = event => { state.span = Number(event.target.value); save(); redrawAll(); };
  by('theme').onclick = () => {
    const dark = state.theme ? state.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
    state.theme = dark ? 'light' : 'dark';
    save();
    showTheme();
  };
  document.querySelectorAll('.all-adapters').forEach(box => box.addEventListener('change', () => {
    state.allAdapters = box.checked;
    save();
    showAdapters();
  }));
  by('run').onchange = event => { Object.assign(state, {run: Number(event.target.value), problem: ''}); browse(); };
  for (const name of ['step', 'verdict', 'text'])
    by(name).addEventListener(name === 'text' ? 'input' : 'change', event => { state[name] = event.target.value; browse(); });
  for (const [id, move] of [['step-before', -1], ['step-after', 1]])
    by(id).onclick = () => { by('step').selectedIndex += move; state.step = by('step').value; browse(); };
  new ResizeObserver(redrawAll).observe(by('charts'));
  addEventListener('pagehide', () => { state.scroll = scrollY; save(); });
}

function reloadLater() {
  by('fresh').textContent = `live, ${new Date(document.lastModified).toLocaleTimeString()}`;
  // Not under the hands of someone who is marking text.
  const reload = () => getSelection().isCollapsed ? location.reload() : setTimeout(reload, 1000);
  setTimeout(reload, 1000 * data.reload_s);
}

by('charts').append(...data.charts.map(makeFigure), ...(data.keys.length ? [makeFigure()] : []));
by('no-curves').hidden = data.keys.length > 0;
by('smoothing').value = state.span;
showTheme();
showRuns();
showAdapters();
listen();
browse();
redrawAll();
scrollTo(0, state.scroll);
if (data.reload_s) reloadLater();
