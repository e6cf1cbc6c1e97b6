'use strict';
// Sampled groups → a browser: the problems that match the filters, one problem's completions side by side, and the same
// problem at other steps.

// Verdicts are not told apart by colour alone: each has a symbol and its name.
const SIGNS = {correct: '✓', incorrect: '✗', no_answer: '∅', unparseable: '?', timeout: '…', error: '!'};
const LONG = 400;
// Orders of the list; groups arrive ordered by step.
const longestOf = group => Math.max(...group.completions.map(completion => completion.tokens));
const ORDERS = {
  steps: () => 0,
  mixed: (one, other) => Math.abs(one.accuracy - 0.5) - Math.abs(other.accuracy - 0.5),
  longest: (one, other) => longestOf(other) - longestOf(one),
};
const by = id => document.getElementById(id);
const plainVerdict = verdict => verdict.replace('_', ' ');

/** Groups with a completion that matches the filters, ordered by step. */
function matching(groups, {step, verdict, text}) {
  const wanted = text.toLowerCase();
  return groups.filter(group =>
    (step === 'all' || group.step === Number(step)) &&
    (verdict === 'all' || group.completions.some(completion => completion.verdict === verdict)) &&
    (!wanted || [group.problem, group.problem_id, ...group.completions.map(completion => completion.text)]
      .some(part => part.toLowerCase().includes(wanted))));
}

/** Fill the list of problems and the group next to it. `choose` is called with the group that the reader selects. */
function showCompletions(data, state, choose) {
  const run = data.runs[state.run], {groups} = run;
  fillFilters(groups, state);
  const found = matching(groups, state).sort(ORDERS[state.order]);
  const index = Math.max(0, found.findIndex(group => isChosen(group, state)));
  by('found').textContent = groups.length ? `${found.length} of ${groups.length} groups` : '';
  by('left-out').textContent = leftOut(run);
  by('browser').hidden = found.length === 0;
  refill(by('problems'), found.map((group, place) => listed(group, place === index, choose)));
  keepInSight(by('problems'), index);
  by('group-before').disabled = index === 0;
  by('group-after').disabled = index >= found.length - 1;
  by('group-before').onclick = () => choose(found[index - 1]);
  by('group-after').onclick = () => choose(found[index + 1]);
  if (found.length)
    showGroup(found[index], groups, state, choose, text => withFormulas(text, data, state.asWritten));
}

const isChosen = (group, state) => group.problem_id === state.problem && group.step === state.groupStep;

/** Replace the children, and keep the keyboard focus where it was. */
function refill(container, children) {
  const place = [...container.children].findIndex(child => child.contains(document.activeElement));
  container.replaceChildren(...children);
  const next = container.children[place];
  (next?.querySelector('button') ?? next)?.focus({preventScroll: true});
}

/** Scroll a list, but not the page, until one of its entries is visible. */
function keepInSight(list, index) {
  const entry = list.children[index];
  if (!entry) return;
  const top = entry.offsetTop - list.offsetTop;
  list.scrollTop = Math.min(top, Math.max(list.scrollTop, top + entry.offsetHeight - list.clientHeight));
}

function leftOut({groups, groups_total, steps_read, steps_total, is_full}) {
  if (!steps_total) return 'This page holds no completions.';
  const of = (some, all) => some === all ? `all ${all.toLocaleString('en')}` :
    `${some.toLocaleString('en')} of the ${all.toLocaleString('en')}`;
  const shown = `Shown: ${of(groups.length, groups_total)} groups in ${of(steps_read, steps_total)} steps`;
  if (groups.length === groups_total) return `${shown}.`;
  return `${shown}, first those whose problem occurs at several steps, then by the digest of its id. ` +
    (is_full ? 'There is no room on a page for more.' : '--problems N shows more.');
}

function fillFilters(groups, state) {
  const steps = [...new Set(groups.map(group => group.step))];
  const present = new Set(groups.flatMap(group => group.completions.map(completion => completion.verdict)));
  const verdicts = Object.keys(SIGNS).filter(name => present.has(name));
  if (!steps.includes(Number(state.step))) state.step = 'all';
  if (!verdicts.includes(state.verdict)) state.verdict = 'all';
  const fill = (id, options) => {
    by(id).replaceChildren(new Option('all', 'all'), ...options);
    by(id).value = state[id];
  };
  fill('step', steps.map(step => new Option(step, step)));
  fill('verdict', verdicts.map(name => new Option(`${SIGNS[name]} ${plainVerdict(name)}`, name)));
  by('text').value = state.text;
  by('run').value = state.run;
  by('order').value = state.order;
  by('step-before').disabled = state.step === 'all';
  by('step-after').disabled = !steps.length || state.step === String(steps.at(-1));
}

const right = group => Math.round(group.accuracy * group.samples);

/** A symbol for each completion. */
function signs(group) {
  const made = element('span', {className: 'signs', title: `${right(group)} of ${group.samples} right`});
  for (const {verdict} of group.completions)
    made.append(element('span', {className: verdict, textContent: SIGNS[verdict]}));
  return made;
}

function listed(group, chosen, choose) {
  const button = element('button', {type: 'button', onclick: () => choose(group)},
    element('span', {className: 'where', textContent: `step ${group.step}`}), signs(group),
    element('span', {className: 'what', textContent: group.problem}));
  if (chosen) button.setAttribute('aria-current', 'true');
  return element('li', {}, button);
}

function showGroup(group, groups, state, choose, readable) {
  const shown = group.completions.filter(({verdict}) => state.verdict === 'all' || verdict === state.verdict);
  by('problem-id').textContent = `${group.problem_id}, step ${group.step}`;
  by('problem').replaceChildren(...readable(group.problem));
  by('reference').textContent = [
    `Reference answer ${group.reference}`,
    `${right(group)} of ${group.samples} completions right`,
    ...(shown.length < group.samples ? [`${shown.length} shown`] : []),
    `sampled by ${group.completions[0].adapter}`,
  ].join(' · ');
  by('prompt').textContent = group.prompt;
  showHistory(group, groups, choose);
  by('cards').classList.toggle('long', shown.some(completion => completion.text.length > LONG));
  by('cards').replaceChildren(...shown.map(completion => card(completion, readable)));
}

/** Buttons for the steps at which the same problem was sampled. */
function showHistory(group, groups, choose) {
  const note = textContent => element('span', {className: 'note', textContent});
  const to = (other, textContent, title) =>
    element('button', {type: 'button', disabled: !other, title, textContent, onclick: () => choose(other)});
  const same = groups.filter(other => other.problem_id === group.problem_id);
  const place = same.indexOf(group);
  const steps = same.map(other => to(other, `step ${other.step}: ${right(other)}/${other.samples}`, 'Right at this step'));
  steps[place].setAttribute('aria-current', 'true');
  refill(by('history'), same.length === 1 ? [note('Shown at this step only.')] :
    [note('Same problem'), to(same[place - 1], '◀', 'Earlier step'), ...steps, to(same[place + 1], '▶', 'Later step')]);
}

function card(completion, readable) {
  const {verdict, reward, advantage, tokens, finish_reason, extracted, text} = completion;
  const sign = advantage > 0 ? '+' : advantage < 0 ? '−' : '';
  const fact = (textContent, title = '') => element('span', {textContent, title});
  const answer = extracted === null ? 'no answer' : `answer ${extracted}`;
  return element('div', {className: 'card'},
    element('div', {className: 'head'},
      element('span', {className: `verdict ${verdict}`, textContent: `${SIGNS[verdict]} ${plainVerdict(verdict)}`}),
      element('span', {className: 'answer', textContent: answer, title: answer})),
    element('div', {className: 'head note'},
      fact(`reward ${Number(reward.toFixed(3))}`), fact(`adv. ${sign}${Math.abs(advantage).toFixed(2)}`, 'advantage'),
      fact(`${tokens.toLocaleString('en')} tokens${finish_reason === 'length' ? ', cut off' : ''}`)),
    element('pre', {}, ...readable(text)));
}
