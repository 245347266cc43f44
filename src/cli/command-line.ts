/**
 * The command line as a whole: yargs, the commands, and what any outcome becomes as an exit status.
 *
 * yargs is kept from printing errors and from ending the process: every refusal is raised, and leaves
 * through the same door as all other errors. `--json` and `--debug` are looked for before parsing, so that a
 * command line that cannot be parsed is refused in the form that was asked for.
 */

import yargs, { type Argv } from 'yargs';
import { messageOf } from '../base/index.ts';
import type { CommandContext, GlobalOptions, Run } from './command.ts';
import { addAttach } from './commands/attach.ts';
import { addBackup } from './commands/backup.ts';
import { addCancel } from './commands/cancel.ts';
import { addConfig } from './commands/config.ts';
import { addCopy } from './commands/copy.ts';
import { addDetach } from './commands/detach.ts';
import { addFill } from './commands/fill.ts';
import { addRecover } from './commands/recover.ts';
import { addRestore } from './commands/restore.ts';
import { addServe } from './commands/serve.ts';
import { addSnapshot } from './commands/snapshot.ts';
import { addStatus } from './commands/status.ts';
import { addStore } from './commands/store.ts';
import { addVolume } from './commands/volume.ts';
import { EXIT, type ExitStatus, exitStatusOf, UsageError } from './exit.ts';
import { Output, type OutputOptions } from './output.ts';

export interface CommandLineOptions
  extends Pick<OutputOptions, 'stdout' | 'stderr'>, Omit<CommandContext, 'output'> {
  /** For `--version`. */
  readonly version: string;
}

const COMMANDS = [
  addVolume,
  addServe,
  addAttach,
  addDetach,
  addSnapshot,
  addBackup,
  addStore,
  addRestore,
  addRecover,
  addFill,
  addCopy,
  addStatus,
  addCancel,
  addConfig,
];

/**
 * Runs one command line to its end.
 *
 * @param words what was typed after the program's name.
 * @returns the exit status; never throws.
 */
export async function runCommandLine(
  words: readonly string[],
  options: CommandLineOptions,
): Promise<ExitStatus> {
  const { stdout, stderr, clock } = options;
  const beforeDashes = words.includes('--') ? words.slice(0, words.indexOf('--')) : words;
  const output = new Output({
    stdout,
    stderr,
    clock,
    json: beforeDashes.includes('--json'),
    debug: beforeDashes.includes('--debug'),
  });
  const run: Run = async (typed, body) => {
    await body({ ...options, output }, typed);
    output.done();
  };
  try {
    await buildParser(run, options.version).parseAsync([...words]);
    return EXIT.done;
  } catch (error) {
    output.fail(error);
    return exitStatusOf(error);
  }
}

function buildParser(run: Run, version: string): Argv<GlobalOptions> {
  const base: Argv<GlobalOptions> = yargs()
    .scriptName('cowbell')
    .usage('$0 <command>\n\nServes volumes over NBD, backs them up while they are in use, and restores them.')
    .locale('en')
    .exitProcess(false)
    .strict()
    .strictCommands()
    .demandCommand(1, 'No command is given')
    .parserConfiguration({ 'greedy-arrays': false, 'boolean-negation': false, 'dot-notation': false })
    .fail((message: string | null, error: unknown) => {
      throw error ?? usageError(message ?? 'The command line cannot be read');
    })
    .option('json', { type: 'boolean', default: false, describe: 'Print one JSON object a line' })
    .option('debug', { type: 'boolean', default: false, describe: 'Print a stack trace with an error' })
    .version(version)
    .help()
    .epilogue(
      'Sizes are bytes or take K, M, G, T (powers of 1024).\nExit status: 0 done, 1 operating error, 2 usage error, 3 corruption found.',
    )
    .wrap(100);
  return COMMANDS.reduce((parser, add) => add(parser, run), base);
}

/** What yargs complains about, as one line. */
function usageError(message: string): UsageError {
  const sentence = messageOf(message)
    .replace(/\s*\n\s*/g, ' ')
    .replace(/^Not enough non-option arguments: got \d+, need at least \d+$/, 'An argument is missing')
    .replace(/[.:\s]+$/, '');
  return new UsageError(`${sentence}; see --help`);
}
