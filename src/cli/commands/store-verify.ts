/** `cowbell store verify`: whether what is stored is what was written; exit status 3 where it is not. */

import type { Argv } from 'yargs';
import { CorruptionError, formatSize } from '../../base/index.ts';
import { type VerifiedSet, verify, type VerifyExtent } from '../../blockset/index.ts';
import { single } from '../arguments.ts';
import type { CommandContext, GlobalOptions, Run } from '../command.ts';
import { UsageError } from '../exit.ts';
import { addKeyOptions } from '../key-options.ts';
import { openStore, SET, STORE, type StoreOptions } from '../store-options.ts';

interface VerifyOptions extends StoreOptions {
  readonly set: string | undefined;
  readonly structure: boolean;
  readonly sample: string | undefined;
  readonly resume: boolean;
}

export function addVerify(parser: Argv<GlobalOptions>, run: Run): Argv<GlobalOptions> {
  return parser.command(
    'verify <store> [set]',
    'Read every byte of a set, or of all sets, and check it; exit status 3 where one is damaged',
    (command) =>
      addKeyOptions(command.positional('store', STORE).positional('set', SET))
        .option('structure', {
          type: 'boolean',
          default: false,
          describe: 'Check files and metadata only, and read no content',
        })
        .option('sample', {
          type: 'string',
          requiresArg: true,
          describe: 'Read a part, such as 5%, and the next part the next time',
        })
        .option('resume', {
          type: 'boolean',
          default: false,
          describe: 'Go on where the last run was interrupted',
        })
        .example('$0 store verify /backup/store', '')
        .example('$0 store verify /backup/store latest:vol', '')
        .example('$0 store verify /backup/store --sample 5%', 'Run daily, it reads everything in 20 days'),
    (options) => run<VerifyOptions>(options, verifySets),
  );
}

async function verifySets(context: CommandContext, options: VerifyOptions): Promise<void> {
  const { output, signal } = context;
  const extent = extentOf(options);
  const store = await openStore(context, options);
  const wanted = options.set === undefined ? await store.list() : [await store.find(options.set)];
  const content = wanted.reduce((sum, { header, counters }) => {
    return sum + ((counters?.tracks ?? 0) - (counters?.zeroTracks ?? 0)) * (header?.trackSizeBytes ?? 0);
  }, 0);
  const total = extent.kind === 'sample' ? content * extent.fraction : content;
  let done = 0;
  let damaged: VerifiedSet | undefined;
  let damagedCount = 0;
  const onProgress = (bytes: number): void => {
    signal.throwIfAborted();
    done += bytes;
    output.progress({
      title: `Verifying ${store.path}`,
      done,
      total,
      bytes: done,
      event: { bytesChecked: done },
    });
  };
  const selection = options.set === undefined ? {} : { selector: options.set };
  for await (const verified of verify(store, { ...selection, extent, resume: options.resume, onProgress })) {
    signal.throwIfAborted();
    reportVerified(context, verified, extent);
    if (verified.sound) continue;
    damaged ??= verified;
    damagedCount += 1;
  }
  if (damaged !== undefined) throw damageOf(damaged, damagedCount);
}

function extentOf(options: VerifyOptions): VerifyExtent {
  const text = single('--sample', options.sample);
  if (text === undefined) return { kind: options.structure ? 'structure' : 'bytes' };
  if (options.structure) throw new UsageError('A sample reads content, wanted no --structure');
  if (options.set !== undefined) throw new UsageError('A sample is of the whole store, wanted no set');
  if (options.resume) throw new UsageError('A sample goes on by itself, wanted no --resume');
  const percent = Number(/^(\d+(?:\.\d+)?)%$/.exec(text)?.[1]);
  if (percent > 0 && percent <= 100) return { kind: 'sample', fraction: percent / 100 };
  throw new UsageError(`--sample is '${text}', wanted more than 0% and up to 100%, such as 5%`);
}

function reportVerified(context: CommandContext, verified: VerifiedSet, extent: VerifyExtent): void {
  const { set, ...result } = verified;
  const checked = extent.kind === 'structure' ? 'structure' : formatSize(verified.checkedBytes);
  const sentence = verified.sound
    ? `Set ${set.id} is sound: ${checked} checked`
    : `Set ${set.id} is damaged${trackNote(verified.damagedTracks)}`;
  const findings = verified.findings.map((finding) => `  ${finding}`);
  const ranges = verified.damagedRanges.slice(0, RANGES_SHOWN_MAX).map(({ offsetBytes, lengthBytes }) => {
    return `  bytes ${offsetBytes} to ${offsetBytes + lengthBytes - 1} of the volume`;
  });
  const frames = verified.damagedFrames
    .slice(0, RANGES_SHOWN_MAX)
    .map(({ path, frame }) => `  frame ${frame} of ${path}`);
  const volume = set.header?.volumeName ?? null;
  context.output.report(
    { event: 'verified', set: set.id, volume, ...result },
    sentence,
    ...findings,
    ...ranges,
    ...frames,
  );
}

function damageOf(damaged: VerifiedSet, count: number): CorruptionError {
  const more = count > 1 ? `, and ${count - 1} more sets are` : '';
  const finding = damaged.damagedTracks.length > 0 ? '' : `: ${damaged.findings[0] ?? 'unreadable'}`;
  return new CorruptionError(
    `Set ${damaged.set.id} is damaged${trackNote(damaged.damagedTracks)}${more}${finding}`,
    { where: damaged.set.path, tracks: damaged.damagedTracks },
  );
}

/** Tracks named in a sentence, as ranges, and not without end. */
const RANGES_SHOWN_MAX = 8;

function trackNote(tracks: readonly number[]): string {
  if (tracks.length === 0) return '';
  const ranges: { first: number; last: number }[] = [];
  for (const track of tracks) {
    const open = ranges.at(-1);
    if (open !== undefined && track <= open.last + 1) open.last = track;
    else ranges.push({ first: track, last: track });
  }
  const shown = ranges
    .slice(0, RANGES_SHOWN_MAX)
    .map(({ first, last }) => (first === last ? String(first) : `${first} to ${last}`));
  const rest = ranges.length > shown.length ? ' and others' : '';
  return ` in track${tracks.length === 1 ? '' : 's'} ${shown.join(', ')}${rest}`;
}
