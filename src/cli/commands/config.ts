/** `cowbell config check`: whether a config file of `serve --config` is right, without a server. */

import { absolutePath } from '../arguments.ts';
import type { AddCommand, CommandContext, GlobalOptions } from '../command.ts';
import { ConfigError, readConfigFile } from '../config/index.ts';

interface Options extends GlobalOptions {
  readonly file: string;
}

export const addConfig: AddCommand = (parser, run) =>
  parser.command('config', 'Look at the config file of serve --config', (command) =>
    command
      .command(
        'check <file>',
        'Say everything that is wrong with a config file, with line and column; nothing but the file is looked at',
        (check) =>
          check
            .positional('file', { type: 'string', demandOption: true, describe: 'The config file' })
            .example('$0 config check /etc/cowbell/cowbell.yaml', ''),
        (options) => run<Options>(options, checkConfig),
      )
      .demandCommand(1, 'No command of config is given'),
  );

async function checkConfig(context: CommandContext, options: Options): Promise<void> {
  const { output, directory } = context;
  const path = absolutePath('The config', options.file, directory);
  try {
    const { volumes } = await readConfigFile(path);
    const policies = volumes.reduce((sum, volume) => sum + volume.policies.length, 0);
    output.report(
      { event: 'config', config: path, volumes: volumes.length, policies },
      `${path}: ${counted(volumes.length, 'volume', 'volumes')}, ${counted(policies, 'policy', 'policies')}`,
    );
  } catch (error) {
    if (error instanceof ConfigError) {
      for (const [index, line] of error.lines.entries())
        output.report({ event: 'problem', ...error.details.problems[index] }, line);
    }
    throw error;
  }
}

function counted(count: number, one: string, several: string): string {
  return `${count} ${count === 1 ? one : several}`;
}
