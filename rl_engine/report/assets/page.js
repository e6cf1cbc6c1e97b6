'use strict';
// The page: which runs are shown, what the charts draw, the reader's choices, and reloading of a watched run.

const data = JSON.parse(by('data').textContent);
const OWN_KEY = 'chosen by the reader';
const DRAWN = new Set(data.charts.flatMap(chart => chart.series.map(series => series.key)).concat('adapter/version'));
const STORE = `rl_engine.report ${location.pathname}`;
const state = {
  off: [], theme: '', scroll: 0, allAdapters: false, asWritten: false,
  span: 1, log: {}, wide: [], metric: firstToDraw(),
  run: 0, step: 'all', verdict: 'all', text: '', order: 'steps', opened: [],
  pair: 0, pairOrder: 'right', pairProblem: '', problem: '', groupStep: -1,
  ...JSON.parse(sessionStorage.getItem(STORE) ?? '{}'),
};
if (!data.runs[state.run]) state.run = 0;
if (!data.pairs[state.pair]) state.pair = 0;

/** The first metric that no chart draws, preferably one that changes. */
function firstToDraw() {
  const others = data.keys.filter(name => !DRAWN.has(name));
  return others.find(name => data.runs.some(run => new Set(run.metrics[name]).size > 2)) ?? others[0];
}

const isShown = index => !state.off.includes(data.runs[index].name);

/** The points of one metric of a run; steps without the metric have none. `asked` tells apart how suites were asked. */
function pointsOf(metrics, {key, low, high}, factor) {
  const points = [];
  (metrics[key] ?? []).forEach((value, index) => {
    if (value === null) return;
    const point = {step: metrics.step[index], value: value * factor};
    const end = name => (metrics[name]?.[index] ?? value) * factor;
    if (low) Object.assign(point, {low: end(low), high: end(high)});
    if (key.startsWith('eval/')) point.asked = metrics.asked?.[index];
    points.push(point);
  });
  return points;
}

/** One run: a colour and a dash pattern per metric. Several runs: a colour per run, a dash pattern per metric. */
function curvesOf(chart) {
  const several = data.runs.length > 1;
  const parts = several && chart.total ? [chart.total] : chart.series;
  const factor = chart.unit.startsWith('%') ? 100 : 1;
  const curves = [];
  data.runs.forEach((run, place) => {
    if (!isShown(place)) return;
    parts.forEach((series, index) => {
      const points = pointsOf(run.metrics, series, factor);
      if (!points.length) return;
      if (!several) curves.push({points, label: series.label, colour: colour(index), dash: dash(index)});
      else {
        const label = parts.length > 1 ? `${run.name}, ${series.label}` : run.name;
        curves.push({points, label, colour: colour(place), dash: dash(index)});
      }
    });
  });
  return chart.total && !several ? stacked(curves) : curves;
}

/** The single value of curves that never change, which needs a sentence, not a chart; otherwise undefined. */
function constant(curves) {
  const [low, high] = extent(curves);
  return high - low <= 1e-6 * Math.abs(high) && curves.some(curve => curve.points.length > 1) ? low : undefined;
}

function ownChart() {
  return {name: OWN_KEY, title: '', unit: '', series: [{key: state.metric, label: state.metric}], from_zero: false};
}

function redraw(figure) {
  const chart = figure.chart ?? ownChart();
  const curves = curvesOf(chart);
  figure.hidden = Boolean(figure.chart) && (curves.length === 0 || constant(curves) !== undefined);
  figure.querySelector('svg.plot')?.remove();
  // A figure in a collapsed section has no width.
  if (figure.hidden || !curves.length || !figure.clientWidth) return;
  const positive = curves.some(curve => curve.points.some(point => point.value > 0));
  const log = positive && (state.log[chart.name] ?? chart.log ?? false);
  const button = figure.querySelector('.log');
  button.hidden = !(log || chart.log || mayBeLog(curves));
  button.setAttribute('aria-pressed', log);
  figure.classList.toggle('wide', state.wide.includes(chart.name));
  const meaning = meaningOf(chart);
  Object.assign(figure.querySelector('.ask'), {hidden: !meaning, title: meaning});
  figure.querySelector('.about').textContent = meaning;
  if (figure.chart) figure.querySelector('.title').title = meaning;
  figure.querySelector('.legend').replaceChildren(...legendOf(chart, curves));
  draw(figure, chart, curves, {log, span: state.span, steps: stepsShown()});
}

/** What docs/metrics.md says about a chart's metrics, each sentence once. */
function meaningOf(chart) {
  return [...new Set(chart.series.map(({key}) => data.meanings[key]).filter(Boolean))].join(' ');
}

/** The first and the last step shown; all charts share this axis. */
function stepsShown() {
  const steps = data.runs.filter((run, index) => isShown(index)).map(run => run.metrics.step).filter(Boolean);
  return [Math.min(...steps.map(of => of[0])), Math.max(...steps.map(of => of.at(-1)))];
}

/** A chart's own legend; the runs' colours are explained at the top of the page. */
function legendOf(chart, curves) {
  if (data.runs.length === 1)
    return curves.length > 1 ? curves.map(curve => element('span', {}, key(curve), ` ${curve.label}`)) : [];
  if (chart.total) return [element('span', {textContent: 'all phases together'})];
  if (chart.series.length === 1) return [];
  return chart.series.map((series, index) =>
    element('span', {}, key({colour: 'var(--ink)', dash: dash(index)}), ` ${series.label}`));
}

/** The frame of a chart or, without one, of the chart whose metric the reader chooses. */
function makeFigure(chart) {
  const name = chart?.name ?? OWN_KEY;
  const text = (tag, textContent, className) => element(tag, {className, textContent});
  const title = chart ? [text('b', chart.title, 'title'), text('span', chart.unit, 'unit')] : [metricSelect()];
  const button = (className, textContent, hint, change) => {
    const onclick = () => {
      change();
      save();
      redraw(figure);
    };
    return element('button', {type: 'button', className, textContent, title: hint, onclick});
  };
  const about = text('p', '', 'about');
  about.hidden = true;
  const buttons = element('span', {className: 'buttons'},
    button('ask', '?', '', () => {
      about.hidden = !about.hidden;
    }),
    button('log', 'log', 'Logarithmic axis', () => {
      state.log[name] = !(state.log[name] ?? chart?.log ?? false);
    }),
    button('enlarge', '⤢', 'Large or small', () => {
      state.wide = state.wide.includes(name) ? state.wide.filter(other => other !== name) : [...state.wide, name];
    }));
  const figure = element('figure', {chart}, element('figcaption', {}, ...title, buttons), about,
    element('div', {className: 'legend'}), element('div', {className: 'tip', hidden: true}));
  figure.dataset.chart = name;
  return figure;
}

/** The charts under one heading, with the diagnostic ones collapsed. */
function makeGroup(name) {
  const charts = data.charts.filter(chart => chart.group === name);
  if (!charts.length) return undefined;
  const grid = wanted => element('div', {className: 'charts'},
    ...charts.filter(chart => chart.diagnostic === wanted).map(makeFigure));
  const group = element('div', {}, element('h3', {textContent: name}), grid(false));
  if (charts.some(chart => chart.diagnostic)) {
    const fold = element('details', {open: state.opened.includes(name)},
      element('summary', {textContent: 'Diagnostics'}), grid(true));
    fold.ontoggle = () => {
      state.opened = state.opened.filter(other => other !== name).concat(fold.open ? [name] : []);
      save();
      fold.querySelectorAll('figure').forEach(redraw);
    };
    group.append(fold);
  }
  return group;
}

function metricSelect() {
  const select = element('select', {}, ...data.keys.map(name => new Option(name, name)));
  if (!data.keys.includes(state.metric)) state.metric = data.keys[0];
  select.value = state.metric;
  select.onchange = () => {
    state.metric = select.value;
    save();
    redraw(select.closest('figure'));
  };
  return element('label', {}, element('b', {textContent: 'Any metric '}), select);
}

function redrawAll() {
  document.querySelectorAll('#charts figure').forEach(redraw);
  const empty = part => [...part.querySelectorAll('figure')].every(figure => figure.hidden);
  for (const part of document.querySelectorAll('#charts > div, #charts details')) part.hidden = empty(part);
  const still = data.charts.map(chart => [chart, constant(curvesOf(chart))]).filter(([, value]) => value !== undefined)
    .map(([chart, value]) => `${chart.title}, ${Number(value.toPrecision(4))} ${chart.unit}`);
  by('constant').textContent = still.length ? `The same at every step: ${still.join('; ')}.` : '';
}

/** Hide everything that belongs to a run that is switched off. */
function showRuns() {
  for (const part of document.querySelectorAll('[data-run]')) part.hidden = !isShown(part.dataset.run);
  for (const box of document.querySelectorAll('#runs input')) box.checked = isShown(box.value);
}

function showTheme() {
  document.documentElement.style.colorScheme = state.theme || 'light dark';
}

function showAdapters() {
  by('adapters').classList.toggle('all', state.allAdapters);
  for (const box of document.querySelectorAll('.all-adapters')) box.checked = state.allAdapters;
}

function browse() {
  save();
  showCompletions(data, state, group => {
    Object.assign(state, {problem: group.problem_id, groupStep: group.step});
    // The chosen step of the history does not match the filters, so reset them.
    if (state.step !== 'all') state.step = String(group.step);
    if (!matching([group], state).length) Object.assign(state, {verdict: 'all', text: ''});
    browse();
  });
}

/** Show problems and completions, with formulas the way the reader wants them. */
function showTexts() {
  by('as-written').hidden = !Object.keys(data.formulas).length;
  by('as-written').setAttribute('aria-pressed', state.asWritten);
  browse();
  if (data.pairs.length) showPairs(data, state, save);
}

function save() {
  sessionStorage.setItem(STORE, JSON.stringify(state));
}

function listen() {
  const boxes = [...document.querySelectorAll('#runs input')];
  for (const box of boxes)
    box.onchange = () => {
      state.off = boxes.filter(other => !other.checked).map(other => data.runs[other.value].name);
      save();
      showRuns();
      redrawAll();
    };
  by('smoothing').onchange = event => {
    state.span = Number(event.target.value);
    save();
    redrawAll();
  };
  by('theme').onclick = () => {
    const isDark = state.theme ? state.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
    state.theme = isDark ? 'light' : 'dark';
    save();
    showTheme();
  };
  by('as-written').onclick = () => {
    state.asWritten = !state.asWritten;
    showTexts();
  };
  for (const box of document.querySelectorAll('.all-adapters'))
    box.onchange = () => {
      state.allAdapters = box.checked;
      save();
      showAdapters();
    };
  for (const id of ['run', 'step', 'verdict', 'order', 'text'])
    by(id).oninput = event => {
      state[id] = event.target.value;
      browse();
    };
  for (const [id, move] of [['step-before', -1], ['step-after', 1]])
    by(id).onclick = () => {
      by('step').selectedIndex += move;
      state.step = by('step').value;
      browse();
    };
  addEventListener('copy', copyAsWritten);
  addEventListener('resize', redrawAll);
  addEventListener('pagehide', () => {
    state.scroll = scrollY;
    save();
  });
}

function reloadLater() {
  by('fresh').textContent = `live, ${new Date(document.lastModified).toLocaleTimeString()}`;
  // Do not redraw while the reader is selecting text.
  const reload = () => getSelection().isCollapsed ? location.reload() : setTimeout(reload, 1000);
  setTimeout(reload, 1000 * data.reload_s);
}

by('charts').append(...data.groups.map(makeGroup).filter(Boolean));
if (data.keys.length)
  by('charts').append(element('div', {}, element('h3', {textContent: 'Any other'}),
    element('div', {className: 'charts'}, makeFigure())));
by('no-curves').hidden = data.keys.length > 0;
by('smoothing').value = state.span;
showTheme();
showRuns();
showAdapters();
listen();
showTexts();
redrawAll();
scrollTo(0, state.scroll);
if (data.reload_s) reloadLater();
